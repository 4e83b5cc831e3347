"""Adapters for sdkit: any file, exact to remove, per request."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdkit_lora.cache import cached
    from sdkit_lora.errors import AdapterError, IncompatibleAdapter, UnmatchedKeys
    from sdkit_lora.files import Adapter, open_adapter
    from sdkit_lora.inspecting import Report, inspect
    from sdkit_lora.keys import KeyMap, targets
    from sdkit_lora.modifier import Lora, on
    from sdkit_lora.training import Session, Settings, train

__all__ = [
    "Adapter",
    "AdapterError",
    "IncompatibleAdapter",
    "KeyMap",
    "Lora",
    "Report",
    "Session",
    "Settings",
    "UnmatchedKeys",
    "cached",
    "inspect",
    "on",
    "open_adapter",
    "targets",
    "train",
]
_ORIGIN = {
    "Adapter": "files",
    "AdapterError": "errors",
    "IncompatibleAdapter": "errors",
    "KeyMap": "keys",
    "Lora": "modifier",
    "Report": "inspecting",
    "Session": "training",
    "Settings": "training",
    "UnmatchedKeys": "errors",
    "cached": "cache",
    "inspect": "inspecting",
    "on": "modifier",
    "open_adapter": "files",
    "targets": "keys",
    "train": "training",
}


def __getattr__(name: str) -> object:
    # sdkit reads `plugin` at discovery, and that imports this package first: torch must wait
    from importlib import import_module

    if name not in _ORIGIN:
        raise AttributeError(f"module 'sdkit_lora' has no attribute {name!r}")
    value: object = getattr(import_module(f"sdkit_lora.{_ORIGIN[name]}"), name)
    return value
