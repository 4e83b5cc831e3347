"""What can be wrong with an adapter."""

from __future__ import annotations

from sdkit import SdkitError

__all__ = ["AdapterError", "IncompatibleAdapter", "UnmatchedKeys"]


class AdapterError(SdkitError, ValueError):
    """An adapter's file cannot be used."""


class IncompatibleAdapter(AdapterError):
    """The adapter was made for another family of models."""


class UnmatchedKeys(AdapterError):
    """The file holds tensors that find no place in the model."""
