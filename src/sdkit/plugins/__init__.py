"""Plugins: names, entry points, and the registry that answers for them. Nothing here imports torch."""

from sdkit.plugins.component import API, KINDS, Component
from sdkit.plugins.discovery import Entry, PluginStatus, Registry, registry
from sdkit.plugins.hookspecs import hookimpl

__all__ = ["API", "KINDS", "Component", "Entry", "PluginStatus", "Registry", "hookimpl", "registry"]
