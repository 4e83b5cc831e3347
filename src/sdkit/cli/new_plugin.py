"""``sdkit new-plugin``: a package to start from, conforming as it stands."""

from __future__ import annotations

from pathlib import Path

import click

from sdkit.errors import FileError, InvalidRequest
from sdkit.files import write_whole
from sdkit.plugins import registry
from sdkit.plugins.component import NAME

__all__ = ["new_plugin"]

PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.24"]
build-backend = "hatchling.build"

[project]
name = "{distribution}"
version = "0.1.0"
description = "A scheduler for sdkit."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["attrs>=24.2", "sdkit-core>=0.1,<0.2"]

[project.optional-dependencies]
test = ["sdkit-core[testing]"]

[project.entry-points.sdkit]
{name} = "{package}"

[tool.hatch.build.targets.wheel]
packages = ["src/{package}"]
"""

INIT = '''\
"""What sdkit reads at discovery. It imports no torch: the scheduler is imported when it is first asked for."""

from sdkit import Component, hookimpl


@hookimpl
def sdkit_components() -> list[Component]:
    """The components of this plugin."""
    return [Component("scheduler", "{name}", "{package}.scheduler:{cls}", "{summary}")]
'''

SCHEDULER = '''\
"""The scheduler. Notation: x = alpha x0 + sigma noise; D the predicted clean latent; primes mark a step's end."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from sdkit import Denoise, Grid, Level, Noise, Step, Traits

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class {cls}:
    """Euler's method, ``x' = alpha' D + sigma' e`` with ``e = (x - alpha D) / sigma``: a place to start from.

    Keep it frozen: one object serves any number of threads, and whatever a step has to remember goes into the state
    that ``step`` returns. Do not divide by alpha: it is 0 where flow models start.
    """

    traits: ClassVar[Traits] = Traits(
        order=1,  # the error falls like 1 / n; `sdkit conform` measures it
        startup_order=None,  # the order of the first steps, where it is lower
        stochastic=False,  # whether it asks for noise
        exact_on_point_mass=True,
        evaluations=1,  # most calls of denoise in one step
    )

    def init(self, x: Tensor, grid: Grid, /) -> None:
        """The state before the first step."""

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: None, noise: Noise, /) -> Step[None]:
        """One step from ``start`` to ``stop``; ``stop.sigma`` is 0 on the last one."""
        denoised = denoise(x, start)
        ratio = stop.sigma / start.sigma
        moved = x * ratio + denoised * (stop.alpha - start.alpha * ratio)
        return Step(moved, denoised, None)
'''

TEST = '''\
"""Every rule of sdkit for schedulers, one test each."""

from sdkit.testing import SchedulerConformance

from {package}.scheduler import {cls}


class Test{cls}(SchedulerConformance):
    scheduler = {cls}()
'''

README = """\
# {distribution}

A scheduler for sdkit, made by `sdkit new-plugin scheduler {name}`.

```sh
pip install -e ".[test]"
sdkit plugins                              # is it found?
sdkit conform {name}                       # is it right?
pytest                                     # the same, one test per rule
sdkit generate "a fox" --scheduler {name}
```
"""


@click.command("new-plugin")
@click.argument("kind", type=click.Choice(["scheduler"]))
@click.argument("name")
@click.option("--into", default=".", show_default=True, metavar="FOLDER", help="Where to make the package's folder.")
def new_plugin(kind: str, name: str, into: str) -> None:
    """Write an installable package with a scheduler that conforms as it stands, to be changed into your own."""
    if not NAME.fullmatch(name) or name[0].isdigit():
        raise InvalidRequest(
            f"The name {name!r} must be lower-case letters and digits joined by single hyphens, a letter first."
        )
    taken = [entry.full_name for entry in registry().entries(kind) if name in entry.names]
    if taken or name in {status.name for status in registry().plugins}:
        raise InvalidRequest(f"The name {name!r} is taken by {taken[0] if taken else 'a plugin'}; choose another.")
    words = name.split("-")
    values = {
        "name": name,
        "distribution": f"sdkit-{name}",
        "package": "sdkit_" + "_".join(words),
        "cls": "".join(word.capitalize() for word in words) + "Scheduler",
        "summary": "Euler, to be changed",
    }
    folder = Path(into) / values["distribution"]
    if folder.exists():
        raise FileError(f"{str(folder)!r} exists; take another name, or another folder with --into.")
    source = folder / "src" / values["package"]
    files = {
        folder / "pyproject.toml": PYPROJECT,
        folder / "README.md": README,
        source / "__init__.py": INIT,
        source / "scheduler.py": SCHEDULER,
        source / "py.typed": "",
        folder / "tests" / "test_conformance.py": TEST,
    }
    try:
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{str(folder)!r} cannot be made: {error.strerror}.") from error
    for path, text in files.items():
        filled = text.format(**values)
        write_whole(path, lambda file, filled=filled: file.write(filled.encode()))  # type: ignore[misc]
    click.echo(f"{folder}: next, `pip install -e '{folder}[test]'` and `sdkit conform {name}`")
