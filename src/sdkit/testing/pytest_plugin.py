"""What pytest loads by itself: markers and hypothesis profiles, and nothing else."""

from __future__ import annotations

from typing import Any

__all__ = ["pytest_configure"]


def pytest_configure(config: Any) -> None:
    """Register the marker ``slow`` and the hypothesis profiles ``sdkit-ci`` and ``sdkit-nightly``."""
    config.addinivalue_line("markers", "slow: longer than a few seconds; run in CI, left out with -m 'not slow'")
    try:
        from hypothesis import settings
    except ImportError:  # the kit is not in use here
        return
    settings.register_profile("sdkit-ci", derandomize=True, deadline=None, max_examples=25)
    settings.register_profile("sdkit-nightly", deadline=None, max_examples=1000)
