"""What changes the parameters: AdamW, and for the matrices that are named, Muon."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from sdkit import ParameterError

__all__ = ["Optimizer"]


class Optimizer:
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101), and Muon for some of the parameters.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) makes the momentum of a matrix nearly
    orthogonal before it is applied. A convolution is the matrix of its outputs by its inputs and places. Its steps are
    scaled to the size of AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982), so that one rate fits both.

    Args:
        parameters: What is trained, leaves that require gradients.
        rate: Learning rate until the first `step` names another.
        weight_decay: Of both.
        muon: Names of the parameters, of two or more dimensions, that Muon changes.

    Raises:
        ParameterError: a name is none of the parameters, or none of a matrix; or this torch has no Muon.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], rate: float, weight_decay: float, muon: Collection[str] = ()
    ) -> None:
        for name in muon:
            if name not in parameters:
                raise ParameterError(f"There is no parameter {name!r} for Muon to change; there are {[*parameters]}.")
            if parameters[name].ndim < 2:
                raise ParameterError(f"Muon changes matrices, and {name!r} has the shape {[*parameters[name].shape]}.")
        self.parameters = dict(parameters)
        # the same memory as the parameters, seen as matrices
        self._matrices = {name: torch.nn.Parameter(_matrix(parameters[name].detach())) for name in sorted(muon)}
        self._adamw, self._muon = None, None
        if len(self._matrices) < len(parameters):
            others = [value for name, value in parameters.items() if name not in self._matrices]
            self._adamw = torch.optim.AdamW(others, lr=rate, weight_decay=weight_decay, foreach=True)
        if self._matrices:
            if not hasattr(torch.optim, "Muon"):
                raise ParameterError(f"torch {torch.__version__} has no Muon; install 2.9 or newer, or name none.")
            self._muon = torch.optim.Muon(
                self._matrices.values(), lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )

    def clear(self) -> None:
        """Forget the gradients."""
        for value in self.parameters.values():
            value.grad = None

    def step(self, rate: float) -> None:
        """Change every parameter by its gradient, at a learning rate."""
        for name, matrix in self._matrices.items():
            gradient = self.parameters[name].grad
            # laid out as the parameter is, or its rows would be read in another order
            matrix.grad = None if gradient is None else _matrix(_laid_out(gradient, self.parameters[name]))
        for optimizer in (self._adamw, self._muon):
            if optimizer is not None:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()

    def state(self) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
        """What a checkpoint holds: tensors by ``key.name``, and what is none by name and key."""
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, dict[str, Any]] = {}
        for name, parameter in self.parameters.items():
            for key, value in self._of(name).items():
                if not isinstance(value, Tensor):
                    numbers.setdefault(name, {})[key] = value
                elif name in self._matrices:
                    kept = torch.empty_like(parameter.detach())  # in its shape: memory may lie differently next time
                    _matrix(kept).copy_(value)
                    tensors[f"{key}.{name}"] = kept
                else:
                    tensors[f"{key}.{name}"] = value.detach()
        return tensors, numbers

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, dict[str, Any]]) -> None:
        """Go on from such a state."""
        for optimizer in (self._adamw, self._muon):
            if optimizer is not None:
                optimizer.state.clear()
        for name, parameter in self.parameters.items():
            kept: dict[str, Any] = {}
            for key, value in tensors.items():
                if key.split(".", 1)[1] != name:
                    continue
                if name in self._matrices:
                    value = _matrix(_laid_out(value.to(parameter.device), parameter))
                # counters of updates stay on the CPU, as torch keeps them
                kept[key.split(".", 1)[0]] = value.clone() if value.ndim == 0 else value.clone().to(parameter.device)
            kept |= numbers.get(name, {})
            if kept:
                self._of(name).update(kept)

    def _of(self, name: str) -> dict[str, Any]:
        """The state of a parameter, whichever changes it."""
        matrix = self._matrices.get(name)
        optimizer, key = (self._adamw, self.parameters[name]) if matrix is None else (self._muon, matrix)
        assert optimizer is not None
        state: dict[str, Any] = optimizer.state[key]
        return state


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A tensor in the memory layout of another of its shape."""
    if value.stride() == like.stride():
        return value
    return torch.empty_like(like.detach(), dtype=value.dtype).copy_(value)


def _matrix(value: Tensor) -> Tensor:
    """A tensor (n, ...) as a matrix (n, m) in the same memory; columns in the order of that memory."""
    inner = sorted(range(1, value.ndim), key=lambda axis: -value.stride()[axis])
    return value.permute(0, *inner).view(len(value), -1)
