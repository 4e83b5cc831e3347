"""What every test of core and plugins runs under: no global random state, no network, reproducible hypothesis."""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

# Two workers share two cores (pytest-xdist, see pyproject.toml): with two threads each they wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch.utils._device import _device_constructors

settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("nightly", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

TORCH_DRAWS = ["rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"]
TORCH_DRAWS += ["rand_like", "randn_like", "randint_like"]
NUMPY_DRAWS = [
    "rand",
    "randn",
    "randint",
    "random",
    "random_sample",
    "ranf",
    "sample",
    "bytes",
    "choice",
    "permutation",
]
NUMPY_DRAWS += [
    "shuffle",
    "normal",
    "standard_normal",
    "uniform",
    "exponential",
    "poisson",
    "binomial",
    "beta",
    "gamma",
]


# torch remembers at its first use which functions make tensors; it must not remember the guarded ones below
_device_constructors()


def _meta() -> bool:
    return torch.get_default_device().type == "meta"


def _guard_draw(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        # on the meta device, where networks are built without memory, a draw has no numbers and touches no state
        if kwargs.get("generator") is None and not (name.startswith("torch.") and _meta()):
            raise AssertionError(f"{name} was called on the global generator; pass generator= or use addressed noise.")
        return function(*args, **kwargs)

    return guarded


def _refuse(what: str) -> Callable[..., NoReturn]:
    def refused(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError(f"{what} was called in a test, and no part of sdkit may.")

    return refused


def _guard_seed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        # Hypothesis seeds numpy around each example, and restores it.
        if not str(sys._getframe(1).f_globals.get("__name__")).startswith("hypothesis."):
            raise AssertionError(f"{name} was called in a test, and no part of sdkit may touch a global random state.")
        return function(*args, **kwargs)

    return guarded


@pytest.fixture(autouse=True)
def no_global_random_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Global draws and seeds raise; what escapes them (``Tensor.normal_``) is seen in the state afterwards.

    A test that builds a randomly initialised ``torch.nn`` module wraps that in ``torch.random.fork_rng()``.
    """
    for name in TORCH_DRAWS:
        monkeypatch.setattr(torch, name, _guard_draw(f"torch.{name}", getattr(torch, name)))
    for module in (torch, torch.random):
        for name in ("manual_seed", "seed"):
            monkeypatch.setattr(module, name, _refuse(f"torch.{name}"))
    for name in NUMPY_DRAWS:
        monkeypatch.setattr(np.random, name, _refuse(f"numpy.random.{name}"))
    monkeypatch.setattr(np.random, "seed", _guard_seed("numpy.random.seed", np.random.seed))
    before = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()
    yield
    assert torch.equal(torch.get_rng_state(), before[0]), "the test changed torch's global random state"
    now = np.random.get_state(legacy=False)
    assert now["state"]["pos"] == before[1]["state"]["pos"], "the test changed numpy's global random state"
    assert np.array_equal(now["state"]["key"], before[1]["state"]["key"]), "the test reseeded numpy's global state"
    assert random.getstate() == before[2], "the test changed Python's global random state"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting anywhere raises."""
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, _refuse(f"socket.{name}"))
