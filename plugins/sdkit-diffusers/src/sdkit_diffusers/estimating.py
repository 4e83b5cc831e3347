"""What a request will take, before it is carried out: memory at the peak, and passes through the networks.

The networks are run on tensors without numbers (torch's fake tensors: shape, type and device), and what lives at any
time is added up. That sees every tensor between operations; what an operation needs inside itself (workspaces of
convolutions, copies in another layout) and what the allocator keeps is not seen: real peaks were found between 0.7 and
1.6 times the estimate (``tests/test_estimating.py`` holds that).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from types import FunctionType, ModuleType
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sdkit import Conditions, InvalidRequest, Model, Parts, Request, guided, pipeline, registry, take
from sdkit_diffusers.autoencoder import Autoencoder

__all__ = ["Estimate", "estimate"]


@frozen
class Estimate:
    """What a request will take.

    Attributes:
        weights: Bytes of all weights on the device; with ``offload="stages"`` those of the largest stage.
        peak: Bytes at the peak, weights among them.
        stage: Where that is: ``"encoder"``, ``"denoiser"``, ``"autoencoder"`` or ``"decoder"``.
        evaluations: Calls of the denoiser, or None if that depends on the pictures.
        rows: Rows of the largest batch the denoiser sees: twice the pictures with guidance.
    """

    weights: int
    peak: int
    stage: str
    evaluations: int | None
    rows: int


class _Live(TorchDispatchMode):
    """Adds up the bytes of tensors made inside the scope, and takes them off when nobody holds them any more."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.peak = 0, 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(one.untyped_storage()) for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)}
        made = func(*args, **(kwargs or {}))
        for one in tree_iter(made):
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                # a view shares what it was made of, and is no new memory
                if id(storage) not in given and storage not in self._seen:
                    self._count(storage)
        return made

    def _count(self, storage: Any) -> None:
        size = storage.nbytes()
        self._seen.add(storage)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


def estimate(model: Model[Any], request: Request) -> Estimate:
    """What ``request`` will take of a model. Nothing is computed and no weight is touched.

    Args:
        model: From `sdkit.load`; of any package, if its parts compute with torch and hold their networks in attributes.
        request: As it would be carried out, modifiers among it; control networks and adapters are counted as they are.

    Raises:
        InvalidRequest: the request cannot be carried out, or a part or a modifier looks at numbers, which there are
            none of.
    """
    pipe = pipeline(model)
    plan = pipe.plan(request)
    count, guides = len(plan.request.seeds), plan.request.guidance not in (None, 1)
    with ExitStack() as stack:
        parts: Any = Parts(pipe.encoder, pipe.denoiser, pipe.scheduler, pipe.decoder)
        for modifier in request.modifiers:
            made = registry().make("modifier", modifier) if isinstance(modifier, str) else modifier
            parts = stack.enter_context(made.apply(parts))
        encoder = parts.encoder.along(plan.grid) if hasattr(parts.encoder, "along") else parts.encoder
        denoiser = guided(parts.denoiser, plan.request.guidance or 1.0) if guides else parts.denoiser
        shape, level = plan.latent_shape, plan.grid[0]
        picture = (1, 3, shape[-2] * model.spec.latent.factor, shape[-1] * model.spec.latent.factor)
        stack.enter_context(torch.no_grad())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        prompts = [request.prompt, request.negative] if guides else [request.prompt]
        taken = {"encoder": _peak(lambda: encoder(prompts))}
        cond = encoder(prompts)

        def rows(row: int) -> Any:
            return take(cond, [row] * count)

        held = Conditions(rows(0), rows(1)) if guides else rows(0)
        if request.image is not None:
            taken["autoencoder"] = _peak(lambda: parts.decoder.encode(torch.empty(picture)))
        if request.mask is not None and hasattr(parts.denoiser, "painting"):
            painted = _painted(parts.denoiser, picture)
            denoiser = guided(painted, plan.request.guidance or 1.0) if guides else painted
        x = torch.empty(shape, device=model.device)
        # beside the denoiser's own tensors there are the latents before and after a step and what was predicted
        latents = 3 * x.untyped_storage().nbytes()
        taken["denoiser"] = latents + _peak(lambda: denoiser(x, level, held))
        taken["decoder"] = latents + _peak(lambda: parts.decoder(x))
    weights, stage = _weights(model, parts), max(taken, key=lambda name: taken[name])
    return Estimate(weights, weights + taken[stage], stage, plan.evaluations, count * (2 if guides else 1))


def _painted(denoiser: Any, picture: tuple[int, ...]) -> Any:
    return denoiser.painting(torch.empty(picture), torch.empty((1, 1, *picture[2:])))


def _peak(run: Callable[[], Any]) -> int:
    """Most bytes that live at once while ``run`` works, beside what lived before."""
    live = _Live()
    try:
        with live:
            run()
    except DataDependentOutputException as error:
        raise InvalidRequest(
            "What this request takes cannot be told before: a modifier (such as a prompt dialect) looks at numbers; "
            "estimate the request without it, a dialect changes little."
        ) from error
    return live.peak


def _weights(model: Model[Any], parts: Parts[Any, Any, Any]) -> int:
    """Bytes of weights on the device at once: all of them, or the largest network where stages take turns."""
    if isinstance(model.autoencoder, Autoencoder):
        placement = model.autoencoder.placement
        sizes = [_size((*part.parameters(), *part.buffers())) for part in placement.parts]
        return max(sizes, default=0) if placement.stages else sum(sizes)
    return _size(_tensors((parts.encoder, parts.denoiser, parts.decoder), set()))


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """The tensors that a part holds: those of networks, and those in attributes of the values it is made of."""
    if id(value) in seen or isinstance(value, (type, ModuleType, FunctionType)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from (*value.parameters(), *value.buffers())
    elif isinstance(value, (tuple, list, Mapping)):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(one, seen)
    else:
        names = [one.name for one in attrs.fields(type(value))] if attrs.has(type(value)) else []
        held = vars(value) if hasattr(value, "__dict__") else {name: getattr(value, name) for name in names}
        for one in held.values():
            yield from _tensors(one, seen)


def _size(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory behind tensors; what they share counts once."""
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())
