"""Print one of the README's two commands, so that CI runs exactly what people are told to run.

    python tools/readme_command.py try|test

A command is the fenced block after the comment ``<!-- command: NAME -->``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["command"]


def command(name: str) -> str:
    """The text of the README's command of that name."""
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- command: {re.escape(name)} -->\s*```\w*\n(.*?)```", text, re.DOTALL)
    if found is None:
        raise SystemExit(f"README.md has no command {name!r}")
    return found[1].strip()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    sys.stdout.write(command(sys.argv[1]) + "\n")
