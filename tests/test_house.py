"""The house itself: floors, imports, public names, docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import pkgutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import sdkit

SOURCE = Path(sdkit.__file__).parent

# Lowest first. A file imports only from floors below its own; files of one floor do not import each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("levels",),
    ("protocols", "plugins.component", "plugins.spelling"),
    ("schedules", "parametrizations", "spacings", "noise", "conditioning", "plugins.hookspecs", "files"),
    ("denoiser", "plugins.builtin", "plugins.discovery", "schedulers.euler"),
    ("schedulers.ddim", "schedulers.heun", "schedulers.dpmpp", "loop", "guidance", "plugins"),
    ("schedulers", "model", "request", "sheet"),
    ("wire",),
    ("manifest",),
    ("pipelines",),
    ("loading",),
    ("frames.time",),
    ("frames.curves",),
    ("frames.tracks",),
    ("frames.frame",),
    ("frames.source", "frames.journal"),
    ("frames.clip",),
    ("frames",),
    ("interop.draws", "interop.torchnoise", "testing.problems", "testing.rules", "testing.pytest_plugin"),
    ("interop.borrowed", "interop.kdiffusion", "interop.lent", "testing.strategies"),
    ("interop", "testing.schedulers", "testing.others", "testing.adapters", "testing.conformance", "testing.precision"),
    ("testing.frames",),
    ("testing",),
    ("cli.registered",),
    ("cli.generate", "cli.licence", "cli.listing", "cli.conform", "cli.new_plugin", "cli.drawing", "cli.app"),
    ("cli.plot", "cli.animate"),
    ("cli",),
)
# Rooms on the top floor, counted apart: nothing that makes a picture imports them (decision 0010).
ROOMS_APART = ("cli", "testing", "interop", "frames")
MOST_OF_FRAMES = 1200  # the frames room has a limit of its own (decision 0012)
# What the core may import besides the standard library.
TESTING = {"hypothesis", "pytest"}  # what the kit may import besides
ALLOWED = {"torch", "attrs", "cattrs", "pluggy", "safetensors", "numpy", "PIL", "click"}


def modules() -> dict[str, Path]:
    found = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        found[name.removesuffix(".__init__") if name != "__init__" else ""] = path
    return found


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether the import waits until a function runs)."""
    tree = ast.parse(path.read_text())
    late = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.Lambda)) for n in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [(f"{node.module}.{alias.name}", id(node) in late) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, id(node) in late) for alias in node.names]
    return found


def test_a_file_imports_only_from_floors_below() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    files = modules()
    assert set(files) - {""} == set(floor), "every file has its place on a floor"
    wrong = []
    for name, path in files.items():
        if not name:
            continue
        for target, late in imports(path):
            if not target.startswith("sdkit."):
                continue
            parts = target.split(".")[1:]
            used = next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in floor), None)
            # Only the command line may reach the package itself (`import sdkit`), and late imports of the registry's
            # builtin component list are how it is found.
            if used is None or floor[used] < floor[name] or (name == "cli.app" and used.startswith("cli.") and late):
                continue
            if (name, used) == ("plugins.discovery", "plugins.builtin"):
                continue
            wrong.append(f"{name} imports {used}")
    assert wrong == []


def test_the_core_imports_nothing_but_what_it_may() -> None:
    for name, path in modules().items():
        used = {target.split(".")[0] for target, _ in imports(path)}
        allowed = ALLOWED | TESTING if name.startswith("testing") else ALLOWED
        allowed = allowed | {"matplotlib"} if name == "cli.drawing" else allowed  # the extra `plot`
        assert used - set(sys.stdlib_module_names) - {"sdkit"} <= allowed, name


def test_first_party_plugins_and_examples_use_only_public_names() -> None:
    root = SOURCE.parent.parent
    parts = ("plugins/*/src/**/*.py", "plugins/*/training/*.py", "plugins/*/evaluation/*.py", "examples/*.py")
    files = [path for part in parts for path in root.glob(part)]
    assert files
    wrong = []
    for path in files:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sdkit":
                names = {alias.name for alias in node.names}
                if node.module != "sdkit" or not names <= set(sdkit.__all__):
                    wrong.append(f"{path.name}: from {node.module} import {', '.join(sorted(names))}")
            if isinstance(node, ast.Import):
                wrong += [f"{path.name}: import {a.name}" for a in node.names if a.name.startswith("sdkit.")]
    assert wrong == []


def test_the_core_has_no_network_code() -> None:
    used = {target.split(".")[0] for path in modules().values() for target, _ in imports(path)}
    assert not used & {"socket", "http", "urllib", "requests", "ssl", "ftplib", "asyncio"}


def lines_of_code(path: Path) -> int:
    """Lines that hold code: no comments, blank lines or docstrings."""
    text = path.read_text()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None
        for number in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    held = {n for t in tokens if t.type not in skip for n in range(t.start[0], t.end[0] + 1)}
    return len(held - docs)


def test_the_core_stays_small() -> None:
    counted = [lines_of_code(path) for name, path in modules().items() if not name.startswith(ROOMS_APART)]
    assert sum(counted) <= 2500


def test_the_frames_room_stays_small() -> None:
    counted = [lines_of_code(path) for name, path in modules().items() if name.startswith("frames")]
    assert 0 < sum(counted) <= MOST_OF_FRAMES


def test_nothing_that_makes_a_single_picture_imports_the_frames_room() -> None:
    allowed = ("frames", "testing.frames", "cli.animate")
    users = [n for n, p in modules().items() if not n.startswith(allowed) and "sdkit.frames" in p.read_text()]
    assert users == []


@pytest.mark.parametrize(
    "code",
    [
        "import sdkit; dir(sdkit); from sdkit import Component, hookimpl, registry; registry().entries()",
        "from sdkit.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from sdkit.cli import main\ntry: main(['plugins'])\nexcept SystemExit: pass",
        "from sdkit.cli import main\ntry: main(['generate', '--help'])\nexcept SystemExit: pass",
        "import sdkit.protocols, sdkit.levels, sdkit.schedules, sdkit.spacings, sdkit.schedulers, sdkit.loop",
    ],
)
def test_torch_is_loaded_only_by_what_computes(code: str) -> None:
    check = f"{code}\nimport sys\nassert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def test_importing_sdkit_loads_neither_numpy_nor_attrs() -> None:
    code = "import sys; import sdkit; assert not {'numpy', 'attrs', 'PIL', 'pluggy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_resolves_and_type_checkers_see_the_same() -> None:
    for name in sdkit.__all__:
        assert getattr(sdkit, name) is not None
    tree = ast.parse((SOURCE / "__init__.pyi").read_text())
    seen = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(sdkit.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sdkit.nothing  # noqa: B018


def test_names_of_functions_are_not_hidden_by_modules_of_the_same_name() -> None:
    for module in pkgutil.walk_packages(sdkit.__path__, "sdkit."):
        importlib.import_module(module.name)
    for name in sdkit.__all__:
        assert not inspect.ismodule(getattr(sdkit, name))


def test_every_exported_thing_is_documented() -> None:
    bare = []
    for name in sdkit.__all__:
        value = getattr(sdkit, name)
        if (inspect.isclass(value) or inspect.isfunction(value)) and not inspect.getdoc(value):
            bare.append(name)
    assert bare == []


def test_each_module_lists_what_it_exports() -> None:
    for name, path in modules().items():
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), name
        targets = [t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
        assert "__all__" in targets, name
