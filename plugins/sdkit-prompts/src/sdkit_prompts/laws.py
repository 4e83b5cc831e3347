"""What a weight does to the embeddings of its tokens. The tools differ, so each law has its tool's name.

Notation: z token embeddings, (n, d) or (batch, n, d), n tokens; w weights, (n,) or (batch, n); z_empty the embeddings
of the empty prompt, of the shape of z or broadcastable to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["LAWS", "a1111", "comfyui", "compel", "share"]

LAWS = ("a1111", "comfyui", "compel")
LEAST = 1e-5  # compel's own limit: at weight 0 the share of what lacks the words is infinite


def a1111(z: Tensor, w: Tensor, *, keep_mean: bool = True) -> Tensor:
    """A1111's law: ``z w``, then scaled as a whole so that its mean is as before.

    The mean is that of one prompt's embeddings, never of a batch: a prompt encoded among others is encoded as alone.

    Args:
        z: (n, d) or (batch, n, d); several chunks of one prompt are one sequence of n tokens.
        w: (n,) or (batch, n).
        keep_mean: A1111's emphasis mode "Original"; without it, "No norm".

    Returns:
        The shape of z. Where the new mean is zero, nothing is scaled.
    """
    weighted = z * w[..., None].to(z)
    if not keep_mean:
        return weighted
    exact = torch.promote_types(z.dtype, torch.float32)
    before, after = (t.to(exact).mean(dim=(-2, -1), keepdim=True) for t in (z, weighted))
    ratio = torch.where(after == 0, torch.ones_like(after), before / torch.where(after == 0, 1.0, after))
    return weighted * ratio.to(z)


def comfyui(z: Tensor, w: Tensor, z_empty: Tensor) -> Tensor:
    """ComfyUI's law: ``z_empty + (z - z_empty) w``, token by token.

    Args:
        z: (n, d) or (batch, n, d).
        w: (n,) or (batch, n).
        z_empty: Embeddings of the empty prompt.
    """
    return z_empty + (z - z_empty) * w[..., None].to(z)


def share(weight: float) -> float:
    """How much of a prompt without some words is mixed to the prompt with them: ``tan((1 - w) pi / 2)`` for w below 1.

    At 1 nothing, at 0.5 as much as of the prompt itself, at 0 all.
    """
    return math.tan((1 - max(weight, LEAST)) * math.pi / 2)


def compel(z: Tensor, w: Tensor, z_empty: Tensor, without: Sequence[tuple[Tensor, float]] = ()) -> Tensor:
    """Compel's law: ComfyUI's for each token, then a mean with the prompts that lack the words of weight below 1.

    Args:
        z: (n, d) or (batch, n, d).
        w: (n,) or (batch, n).
        z_empty: Embeddings of the empty prompt.
        without: For each fragment of weight below 1, the embeddings of the prompt with that fragment masked out, and
            its weight.

    Returns:
        The mean of all of them, `share` being their parts beside 1 for the prompt itself.
    """
    found = comfyui(z, w, z_empty)
    total = 1.0
    for masked, weight in without:
        part = share(weight)
        found = found + comfyui(masked, w, z_empty) * part
        total += part
    return found / total
