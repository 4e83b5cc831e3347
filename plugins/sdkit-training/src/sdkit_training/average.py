"""Weights averaged over a training, which sample better than the last ones.

Notation: after update k (from 1) the average is ``a_k = d_k a_(k-1) + (1 - d_k) w_k``, with ``a_0 = w_0`` and
``d_k = min(decay, (1 + k) / (10 + k))``, so that an early average forgets where the training began.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sdkit import ParameterError

__all__ = ["Average"]


class Average:
    """An exponential moving average of named tensors, in float32.

    Args:
        tensors: What is averaged, at its start.
        decay: Largest share that is kept at an update, in [0, 1).

    Raises:
        ParameterError: decay is out of range.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ParameterError(f"The decay of an average lies in [0, 1), not {decay}; 0.999 is usual.")
        self.decay = decay
        self.updates = 0
        self.values = {name: tensor.detach().float().clone() for name, tensor in tensors.items()}

    def share(self, update: int) -> float:
        """``d_k``, what update ``k`` keeps of the average before it."""
        return min(self.decay, (1 + update) / (10 + update))

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Take in the tensors as they are now."""
        self.updates += 1
        weight = 1 - self.share(self.updates)
        for name, value in self.values.items():
            value.lerp_(tensors[name].detach().to(value), weight)
