"""Every error sdkit raises on purpose.

One family, ``SdkitError``; each leaf is also the standard type a caller would expect, so ``except ValueError`` keeps
working in code that has never heard of sdkit. Messages are one sentence: what is wrong, the value, what is allowed or
near, what to do. Where the error happened inside a run (slot, step, level) is added with ``add_note``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AmbiguousComponent",
    "ContractError",
    "FileError",
    "GridError",
    "InvalidRequest",
    "LevelError",
    "ManifestError",
    "NoiseError",
    "NonFiniteError",
    "ParameterError",
    "PluginError",
    "SdkitError",
    "UnknownComponent",
]


class SdkitError(Exception):
    """Base of all errors that sdkit raises on purpose."""


class LevelError(SdkitError, ValueError):
    """A noise level that cannot exist, or at which the asked quantity is undefined."""


class GridError(SdkitError, ValueError):
    """A sequence of levels that is not a grid: too short, or not from noisy to clean."""


class NoiseError(SdkitError, ValueError):
    """Noise asked of a source that cannot give it (wrong batch, unknown interval)."""


class ContractError(SdkitError, ValueError):
    """A part gave something its protocol does not allow, such as a tensor of another shape."""


class NonFiniteError(SdkitError, ArithmeticError):
    """NaN or infinity came out of a part; the message names the slot, the step and the level."""


class InvalidRequest(SdkitError, ValueError):
    """A request that cannot be carried out; nothing was computed."""


class ParameterError(SdkitError, TypeError):
    """A component was given a parameter that it does not have, or a value of the wrong kind."""


class UnknownComponent(SdkitError, LookupError):
    """No component of that kind has that name; the message lists the nearest names."""


class AmbiguousComponent(SdkitError, LookupError):
    """A short name that more than one component answers; the message lists the full names."""


class PluginError(SdkitError, ImportError):
    """A plugin, or the object behind one of its components, cannot be used."""


class ManifestError(SdkitError, ValueError):
    """A file without a readable manifest, or a manifest that cannot be carried out again."""


class FileError(SdkitError, OSError):
    """A file that cannot be read or written."""


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """The known names nearest to ``name`` as a phrase to end a message with, or the first names if none is near.

    Upper and lower case count as equal; of names that differ only in that, the first is offered.
    """
    names: dict[str, str] = {}
    for candidate in known:
        names.setdefault(candidate.casefold(), candidate)
    if not names:
        return "there are none"
    near = difflib.get_close_matches(name.casefold(), names, n=count, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(names[match] for match in near) + "?"
    shown = sorted(names.values())
    return f"known: {', '.join(shown[:20])}" + (", ..." if len(shown) > 20 else "")
