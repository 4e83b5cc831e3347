"""`k_diffusion.sampling`, as published, without the package around it.

k-diffusion is installed without its dependencies (`requirements-parity.txt` says why), so its ``__init__``, which
imports all of its training code, cannot run. ``sampling.py`` needs one function from beside it, `append_dims`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from types import ModuleType
from typing import Any

from torch import Tensor

__all__ = ["sampling"]


def append_dims(x: Tensor, dims: int) -> Tensor:
    """``x`` with dimensions of length 1 at its end, ``dims`` in all: what `k_diffusion.utils` calls so."""
    return x.reshape(*x.shape, *[1] * (dims - x.ndim))


def _installed() -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution("k-diffusion")
    except importlib.metadata.PackageNotFoundError as error:
        error.add_note("it is installed by: pip install --no-deps -r requirements-parity.txt")
        raise


def sampling() -> Any:
    """The module; afterwards ``import k_diffusion.sampling`` finds it, too.

    Raises:
        PackageNotFoundError: k-diffusion is not installed.
    """
    if "k_diffusion.sampling" not in sys.modules:
        package, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
        package.__path__ = [str(_installed().locate_file("k_diffusion"))]
        utils.__dict__["append_dims"] = append_dims
        package.__dict__["utils"] = utils
        sys.modules["k_diffusion"], sys.modules["k_diffusion.utils"] = package, utils
    return importlib.import_module("k_diffusion.sampling")
