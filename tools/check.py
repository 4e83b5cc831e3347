"""Everything CI checks, in one command: tests, lint, format, types.

python tools/check.py [--no-tests]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TYPED = ["-p", "sdkit"]
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/src/*/__init__.py"))
LOOSE = ["examples", "benchmarks", "tools"]


def main(arguments: list[str]) -> int:
    """Run every check, even after one fails; 0 if all passed."""
    if unknown := set(arguments) - {"--no-tests"}:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}\n{__doc__}")
    python = [sys.executable, "-m"]
    checks = [] if "--no-tests" in arguments else [[*python, "pytest"]]
    checks += [
        [*python, "ruff", "check", "."],
        [*python, "ruff", "format", "--check", "."],
        [*python, "mypy", *TYPED, *(part for name in PLUGINS for part in ("-p", name))],
    ]
    checks += [[*python, "mypy", str(path)] for name in LOOSE for path in sorted((ROOT / name).glob("*.py"))]
    failed = []
    for check in checks:
        line = " ".join(check[2:])
        sys.stdout.write(f"+ {line}\n")
        sys.stdout.flush()
        if subprocess.run(check, cwd=ROOT, check=False).returncode:
            failed.append(line)
    sys.stdout.write("".join(f"FAILED {line}\n" for line in failed) or "all checks passed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
