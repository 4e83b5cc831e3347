"""The programs beside the package: training and evaluation, which are scripts and no part of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

PLUGIN = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def programs() -> Iterator[Callable[..., SimpleNamespace]]:
    """Imports programs by their names, for one file of tests; afterwards they are forgotten again."""
    before, known = list(sys.path), set(sys.modules)
    sys.path[:0] = [str(PLUGIN / "training"), str(PLUGIN / "evaluation")]
    yield lambda *names: SimpleNamespace(**{name: __import__(name) for name in names})
    sys.path[:] = before
    for name in set(sys.modules) - known:  # their names are common; no other test shall find them
        if str(getattr(sys.modules[name], "__file__", "")).startswith((f"{PLUGIN}/evaluation", f"{PLUGIN}/training")):
            del sys.modules[name]
