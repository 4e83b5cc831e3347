"""The command line. Torch is loaded only by the commands that compute."""

from sdkit.cli.app import main

__all__ = ["main"]
