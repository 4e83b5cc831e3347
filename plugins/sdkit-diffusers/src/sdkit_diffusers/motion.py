"""AnimateDiff's motion modules in a U-Net: layers that look along the frames, behind those that look at one picture.

The U-Net sees a batch whose rows are the frames of a clip (of several clips, one after the other). A twin of it
(`sdkit_diffusers.wiring.twin`) shares its weights and has the motion modules among its blocks, under the names that
diffusers' ``UNetMotionModel`` gives them, so that adapters for motion find them; the model itself is not touched.

Source: Guo et al. 2023, https://arxiv.org/abs/2307.04725. Windows inside the motion modules: Qiu et al. 2023
(FreeNoise), https://arxiv.org/abs/2310.15169.

Notation: b clips, f frames, c channels, h x w elements of a latent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from sdkit import Conditions, ContractError, Grid, Level, NoiseSchedule, take
from sdkit_diffusers import motionfiles
from sdkit_diffusers.beside import kept
from sdkit_diffusers.parts import Plan
from sdkit_diffusers.windows import Window
from sdkit_diffusers.wiring import core, network_call, pair, rewired, twin

__all__ = ["Inside", "Moving", "OfStep", "load_motion", "of_step", "with_motion"]

AT_ONCE = {"cpu": 2**18, "": 2**25}
"""Numbers that go through a motion module at once, by kind of device: what one layer needs fits a processor's cache,
and a graphics card has enough to do. Elements of the picture do not see each other there, so nothing changes."""
Windows = Sequence[tuple[Window, tuple[float, ...]]]
"""Windows and the shares of their answers, see `sdkit_diffusers.windows`."""


def load_motion(denoiser: Any, file: str | Path) -> nn.Module:
    """The motion module in a file or folder, for a model; kept until the model is closed.

    Args:
        denoiser: The model's.
        file: A folder as diffusers saves it, or a ``.safetensors`` file with original or diffusers' names.

    Raises:
        FileError: a file cannot be read, or is no motion module.
        InvalidRequest: the motion module was made for another family.
    """
    call, path = network_call(denoiser), Path(file)

    def check(planned: Plan) -> None:
        motionfiles.check(path.name, planned.part.config, core(call.network).config)

    network: nn.Module = kept(call, path, "motion", lambda: [(motionfiles.read(path), check)])[0]
    home = next(network.parameters())
    for module in network.modules():  # tables of positions that no file held were made on the CPU
        for name, table in module.named_buffers(recurse=False):
            if table.device != home.device or table.dtype != home.dtype:
                setattr(module, name, table.to(home))
    return network


@frozen(eq=False)
class Inside:
    """Windows inside the motion modules: all frames go through the U-Net together, and see those of their windows.

    Attributes:
        windows: With their shares.
    """

    windows: Windows = field(repr=False)
    _there: dict[Any, list[tuple[Tensor, Tensor]]] = field(factory=dict, repr=False, init=False)

    def __call__(self, block: Any, x: Tensor) -> Tensor:
        """A layer of a motion module on (rows, frames, channels): attention by windows, then what sees one frame."""
        total = torch.zeros_like(x)
        for frames, share in self._on(x):
            part = x[:, frames]
            part = block.attn1(block.pos_embed(block.norm1(part))) + part
            part = block.attn2(block.pos_embed(block.norm2(part))) + part
            total.index_add_(1, frames, part * share)
        made: Tensor = block.ff(block.norm3(total)) + total
        return made

    def _on(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        key = (x.device, x.dtype)
        if key not in self._there:
            self._there[key] = [
                (torch.tensor(window, device=x.device), torch.tensor(share, dtype=x.dtype, device=x.device)[:, None])
                for window, share in self.windows
            ]
        return self._there[key]


def with_motion(denoiser: Any, network: nn.Module, frames: int, *, inside: Inside | None = None) -> Any:
    """A denoiser of clips: every ``frames`` rows of a batch are the frames of one.

    Args:
        denoiser: Of a model with a U-Net, perhaps under control.
        network: From `load_motion`.
        frames: Of a clip, at most as many as the motion module has positions for, unless there are windows inside.
        inside: Windows inside the motion modules.

    Raises:
        InvalidRequest: the model has no U-Net.
    """

    def carry(unet: Any) -> None:
        adapter: Any = network
        for blocks, motions in ((unet.down_blocks, adapter.down_blocks), (unet.up_blocks, adapter.up_blocks)):
            for block, motion in zip(blocks, motions, strict=True):
                _carry(block, motion.motion_modules, frames, inside)
        if adapter.mid_block is not None:
            _carry(unet.mid_block, adapter.mid_block.motion_modules, frames, inside)

    return rewired(denoiser, lambda unet: twin(unet, carry))


def _carry(block: Any, motions: nn.ModuleList, frames: int, inside: Inside | None) -> None:
    """Puts motion modules behind a block's pairs of layers: behind the attentions, or the only layers there are."""
    before = getattr(block, "attentions", None) or block.resnets
    block.motion_modules = motions
    for layer, motion in zip(before, motions, strict=True):
        layer.__dict__["_forward_hooks"] = OrderedDict(layer._forward_hooks)  # a twin shares them
        layer.register_forward_hook(_follow(motion, frames, inside))


def _follow(motion: nn.Module, frames: int, inside: Inside | None) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(layer: nn.Module, given: Any, made: Any) -> Any:
        if isinstance(made, Tensor):
            return _moved(motion, made, frames, inside)
        return (_moved(motion, made[0], frames, inside), *made[1:])

    return hook


def _moved(motion: Any, x: Tensor, frames: int, inside: Inside | None) -> Tensor:
    """What diffusers' ``AnimateDiffTransformer3D`` makes of (b f, c, h, w), a part of the picture at a time."""
    if x.shape[0] % frames:
        raise ContractError(f"A batch of {x.shape[0]} is no whole number of clips of {frames} frames.")
    c, h, w = x.shape[1:]
    clips = x.reshape(-1, frames, c, h, w).transpose(1, 2)
    tokens = motion.norm(clips).permute(0, 3, 4, 2, 1).reshape(-1, frames, c)
    rows = max(1, AT_ONCE.get(x.device.type, AT_ONCE[""]) // (frames * c))
    made = [_layers(motion, part, inside) for part in tokens.split(rows)]
    whole = made[0] if len(made) == 1 else torch.cat(made)
    return whole.reshape(-1, h, w, frames, c).permute(0, 3, 4, 1, 2).reshape(x.shape).add_(x)


def _layers(motion: Any, tokens: Tensor, inside: Inside | None) -> Tensor:
    """What comes of (rows, f, c) between the norm and what is added to the picture."""
    part = motion.proj_in(tokens)
    for block in motion.transformer_blocks:
        part = block(part) if inside is None else inside(block, part)
    made: Tensor = motion.proj_out(part)
    return made


@frozen(eq=False)
class OfStep:
    """A conditioning, and the levels at which steps begin, as ``log_snr``."""

    cond: Any
    begins: tuple[float, ...]

    def step(self, level: Level) -> int:
        """The number of the step in which a level is visited, from 0."""
        return max(0, sum(begin <= level.log_snr + 1e-9 for begin in self.begins) - 1)


def of_step(cond: Any, grid: Grid) -> OfStep:
    """The conditioning with the steps of a way: what `sdkit_diffusers.wiring.AlongEncoder` says for `Moving`."""
    return OfStep(cond, tuple(level.log_snr for level in grid[:-1]))


@frozen(eq=False)
class Moving:
    """A denoiser of a clip that sees it in windows, whose answers are fused.

    Attributes:
        denoiser: Of windows, from `with_motion`.
        frames: Of the clip; a batch is one clip, or several.
        windows: The windows of a step, from its number; all of one length.
        tick: Called before each window is denoised; what it raises ends the run.
    """

    denoiser: Any
    frames: int
    windows: Callable[[int], Windows] = field(repr=False)
    tick: Callable[[], None] | None = field(default=None, repr=False)

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The noise schedule it was trained on."""
        found: NoiseSchedule | None = getattr(self.denoiser, "schedule", None)
        return found

    def __call__(self, x: Tensor, level: Level, cond: Any, /) -> Tensor:
        """The predicted clean latents."""

        def ask(part: Tensor, conds: Sequence[Any]) -> Sequence[Tensor]:
            return (self.denoiser(part, level, conds[0]),)

        return self._fused(x, level, (cond,), ask)[0]

    def pair(self, x: Tensor, level: Level, cond: Conditions[Any], /) -> Sequence[Tensor]:
        """The predictions for the prompt and for the negative one, of a window both at once."""

        def ask(part: Tensor, conds: Sequence[Any]) -> Sequence[Tensor]:
            return pair(self.denoiser, part, level, Conditions(*conds))

        return self._fused(x, level, (cond.positive, cond.negative), ask)

    def _fused(
        self, x: Tensor, level: Level, conds: tuple[Any, ...], ask: Callable[[Tensor, Sequence[Any]], Sequence[Tensor]]
    ) -> Sequence[Tensor]:
        if x.shape[0] % self.frames:
            raise ContractError(f"A batch of {x.shape[0]} is no whole number of clips of {self.frames} frames.")
        step = 0
        if isinstance(conds[0], OfStep):
            step, conds = conds[0].step(level), tuple(one.cond for one in conds)
        clips, windows = range(0, x.shape[0], self.frames), self.windows(step)
        if [window for window, _ in windows] == [tuple(range(self.frames))]:
            self._count()
            return ask(x, conds)
        totals = [torch.zeros_like(x) for _ in conds]
        for window, share in windows:
            self._count()
            rows = [clip + frame for clip in clips for frame in window]
            weight = torch.tensor(share * len(clips), dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1))
            index = torch.tensor(rows, device=x.device)
            for total, made in zip(totals, ask(x[index], [take(cond, rows) for cond in conds]), strict=True):
                total.index_add_(0, index, made * weight)
        return totals

    def _count(self) -> None:
        if self.tick is not None:
            self.tick()
