"""How many small mistakes in our own solvers the conformance kit and the tests notice.

    python tools/mutation.py [--files NAME ...] [--sample N [--seed S]] [--results FILE] [--page FILE]

Cosmic Ray (https://cosmic-ray.readthedocs.io) makes the mutants and keeps the score. Each is tried in a copy of the
tree, so that nobody else's files are touched: first on the rules of `sdkit.testing` (few cases each) with the
schedulers that live in the mutated file, then on the tests that name them, until something fails. A mutant that
nothing fails on has survived. Those that cannot be told from the original stand, with the reason, in
``tests/mutants/equivalent.toml``; they do not count.

A run of everything writes ``docs/mutation.md``. ``--files dpmpp unipc`` takes these files only, ``--sample 40`` a
random choice that depends on the seed alone; both print their table and write the page only with ``--page``.
``--results FILE`` keeps what was found, so that a run can be interrupted: files that have not changed since are not
run again.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "mutation.md"
EQUIVALENT = ROOT / "tests" / "mutants" / "equivalent.toml"
CORE, SAMPLERS = "src/sdkit/schedulers", "plugins/sdkit-samplers/src/sdkit_samplers"
NOT_SOLVERS = ("__init__.py", "plugin.py", "names.py", "spacings.py")
COPIED = ("src", "tests", "conftest.py", "pyproject.toml", "plugins/sdkit-samplers")
TESTS = {
    CORE: ("tests/test_schedulers.py", "tests/test_parity_diffusers.py"),
    SAMPLERS: ("plugins/sdkit-samplers/tests/test_samplers.py", "plugins/sdkit-samplers/tests/test_parity_samplers.py"),
}
HOLES = "tests/test_mutation_holes.py"
# Threads and processes cannot be told apart from a mutant's own trouble, and the slow tests are for other days.
LEFT_OUT = ("eight_threads", "loads_no_torch", "test_every_component_has_a_test_here")
CORE_SCHEDULERS = ("euler", "heun", "heun(variable='flow')", "ddim(eta=0)", "ddim(eta=0.5)", "ddim(eta=1)", "dpmpp-2m")
# A shift of a float is a TypeError at once; // and % in place of / are no slips of a pen. Both would pad the score.
UNLIKELY = re.compile(r"ReplaceBinaryOperator_\w+_(RShift|LShift|BitOr|BitAnd|BitXor|FloorDiv|Mod)$")
EXAMPLES = 4
CPU_SECONDS = 15
"""For one rule on one scheduler, or one test; the slowest takes about 2 when nothing is wrong."""
WALL_SECONDS = 900
MEMORY = 12 * 2**30


@frozen
class Mutant:
    """One mutant and what became of it.

    Attributes:
        file: Path from the root of the tree.
        line: In that file.
        function: The definition it is in, or "".
        operator: Cosmic Ray's name for the kind of change.
        before: The changed lines, white space folded.
        after: What they became.
        verdict: ``"killed"`` or ``"survived"``.
        by: Which rule or test failed, or ``"time"``.
    """

    file: str
    line: int
    function: str
    operator: str
    before: str
    after: str
    verdict: str = ""
    by: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names it in the file of equivalent mutants; lines move, so it is not their number."""
        return self.file, self.function, self.before, self.after

    @property
    def by_rule(self) -> bool:
        """Whether a rule of the kit killed it."""
        return bool(re.match(r"[SX]\d+ ", self.by))


def solver_files(patterns: Sequence[str] = ()) -> list[str]:
    """The files whose mutants are made, from the root of the tree; those that match a pattern, if any is given.

    Raises:
        SystemExit: a pattern matches none.
    """
    paths = [path for folder in (CORE, SAMPLERS) for path in sorted((ROOT / folder).glob("*.py"))]
    files = [str(path.relative_to(ROOT)) for path in paths if path.name not in NOT_SOLVERS]
    for pattern in patterns:
        if not any(_matches(file, pattern) for file in files):
            raise SystemExit(f"No solver's file is called {pattern!r}; there are {', '.join(files)}.")
    return [file for file in files if not patterns or any(_matches(file, pattern) for pattern in patterns)]


def _matches(file: str, pattern: str) -> bool:
    return pattern == Path(file).stem or fnmatch(file, pattern) or file.endswith("/" + pattern)


def equivalent() -> dict[tuple[str, str, str, str], str]:
    """Reasons of the mutants that were judged to be no change, by `Mutant.key`."""
    entries = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))["mutant"]
    return {(e["file"], e["function"], _fold(e["before"]), _fold(e["after"])): _fold(e["reason"]) for e in entries}


def _fold(text: str) -> str:
    return " ".join(text.split())


# The mutants.


def make_mutants(tree: Path, files: Sequence[str], sample: int | None, seed: int) -> list[tuple[Mutant, Any]]:
    """The mutants of the files, each with Cosmic Ray's description of it; what is none is set aside.

    That is what Python refuses to compile, and what changes only an annotation. With ``sample`` there are no more than
    so many, the same ones for the same seed.
    """
    sources = {file: (tree / file).read_text(encoding="utf-8") for file in files}
    listed = [(file, spec) for file in files for spec in _specifications(tree / file, sources[file])]
    if sample is not None:
        random.Random(seed).shuffle(listed)
    seen = {file: {_meaning(source)} for file, source in sources.items()}
    made: list[tuple[Mutant, Any]] = []
    for file, spec in listed:
        if len(made) == sample:
            break
        changed = _apply(sources[file], spec)
        meaning = None if changed is None else _meaning(changed)
        if changed is not None and meaning is not None and meaning not in seen[file]:
            seen[file].add(meaning)
            made.append((_mutant(file, sources[file], changed, spec), spec))
    return made


def _specifications(path: Path, source: str) -> list[Any]:
    """What Cosmic Ray's operators find to change, without the unlikely slips: what its ``init`` lists, in less time."""
    syntax, plugins = importlib.import_module("cosmic_ray.ast"), importlib.import_module("cosmic_ray.plugins")
    specification = importlib.import_module("cosmic_ray.work_item").MutationSpec
    nodes, found = list(syntax.ast_nodes(syntax.get_ast(source))), []
    for name in sorted(plugins.operator_names()):
        kind = plugins.get_operator(name)
        if UNLIKELY.search(name) or kind.arguments():
            continue
        operator = kind()
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        found += [specification(path, name, i, start, stop) for i, (start, stop) in enumerate(places)]
    return sorted(found, key=lambda spec: (spec.start_pos, spec.operator_name, spec.occurrence))


def _mutant(file: str, source: str, changed: str, spec: Any) -> Mutant:
    line: int = spec.start_pos[0]
    operator = spec.operator_name.removeprefix("core/")
    return Mutant(file, line, _definition(source, line), operator, *_changed_lines(source, changed))


def _order(item: Any) -> tuple[Any, ...]:
    (spec,) = item.mutations
    return spec.start_pos, spec.operator_name, spec.occurrence


def _apply(source: str, spec: Any) -> str | None:
    operator = importlib.import_module("cosmic_ray.plugins").get_operator(spec.operator_name)(**spec.operator_args)
    changed: str | None = importlib.import_module("cosmic_ray.mutating").mutate_code(source, operator, spec.occurrence)
    return changed


def _meaning(source: str) -> str | None:
    """The program without its annotations and what it imports for them, or None if it is no program."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(source)
            compile(source, "mutant", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    tree.body = [node for node in tree.body if not _for_annotations(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.dump(tree)


def _for_annotations(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _changed_lines(source: str, changed: str) -> tuple[str, str]:
    lines = list(difflib.unified_diff(source.splitlines(), changed.splitlines(), n=0, lineterm=""))[2:]
    before, after = (" ".join(line[1:] for line in lines if line.startswith(mark)) for mark in "-+")
    return _fold(before), _fold(after)


def _definition(source: str, line: int) -> str:
    """``Class.function`` around a line."""
    names: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first <= line <= (node.end_lineno or first):
                names.append((first, node.name))
    return ".".join(name for _, name in sorted(names))


# Trying them. Importing torch takes longer than judging most mutants, so one warm process that has imported
# everything but sdkit stands by; each mutant gets a fork of it, which imports the mutated sdkit fresh.

CLIENT = """\
import socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
link.sendall(" ".join(sys.argv[2:]).encode() + b"\\n")
answer = b"".join(iter(lambda: link.recv(4096), b"")).decode()
print(answer)
sys.exit(0 if answer == "survived" else 1)
"""


def serve(tree: Path, address: str) -> None:
    """Answer each request with the verdict on the file that differs from what it was, or on the one named."""
    originals = {file: (tree / file).read_text(encoding="utf-8") for file in solver_files()}
    _warm(tree)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen(1)
        while True:
            link, _ = door.accept()
            with link, link.makefile("r") as asked:
                named = asked.readline().strip()
                if named == "stop":
                    return
                changed = [f for f, text in originals.items() if (tree / f).read_text(encoding="utf-8") != text]
                link.sendall(_in_a_fork(tree, named or changed[0]).encode())


def _warm(tree: Path) -> None:
    for name in ("torch", "scipy.integrate", "hypothesis.strategies", "cattrs", "pluggy"):
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    diffusers = importlib.import_module("diffusers")
    for path in (path for paths in TESTS.values() for path in paths):
        for name in re.findall(r"THEIRS\.(\w+)", (tree / path).read_text(encoding="utf-8")):
            getattr(diffusers, name)
    importlib.import_module("pytest")
    assert not any(name.startswith("sdkit") for name in sys.modules), "sdkit must be imported by each fork anew"


def _in_a_fork(tree: Path, file: str) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.alarm(WALL_SECONDS)
        os.write(writing, (judge(tree, file) or "survived")[:2000].encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "r") as answer:
        words = answer.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM):
        return "time"
    return words or f"ended with status {status}"


def judge(tree: Path, file: str) -> str | None:
    """What fails with this file as it is now, or None."""
    try:
        _start_clock()
        direct, others = _schedulers_of(tree, file)
        others = _one_of_each(others)
        failed = _rules(direct or others)
    except BaseException as error:  # a mutant may fail in any way, and that is its end
        return f"import {type(error).__name__}: {error}"
    return failed or _tests(tree, file, {**direct, **others})


def _start_clock() -> None:
    """From here the process may use `CPU_SECONDS`, then the system ends it: a mutant that loops for ever is killed."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)


def _schedulers_of(tree: Path, file: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Schedulers (text to object) whose class is in the file, and those of files that import it."""
    sdkit = importlib.import_module("sdkit")
    assert Path(str(sdkit.__file__)).is_relative_to(tree), f"{sdkit.__file__} is not the copy"
    plugin = importlib.import_module("sdkit_samplers.plugin")
    registry = sdkit.Registry.of({"samplers": plugin})
    direct, others = {}, {}
    for text in (*CORE_SCHEDULERS, *_tested_samplers(tree)):
        module = registry.find("scheduler", text.split("(")[0]).component.target.split(":")[0]
        home = next(path for path in solver_files() if _module(path) == module)
        if home == file:
            direct[text] = registry.make("scheduler", text)
        elif file in _imported(tree, home):
            others[text] = registry.make("scheduler", text)
    return direct, others


def _tested_samplers(tree: Path) -> list[str]:
    """The samplers and parameters that the plugin's own tests list."""
    found: list[str] = []
    for node in ast.parse((tree / TESTS[SAMPLERS][0]).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("DETERMINISTIC", "CONVERGENT"):
            found += ast.literal_eval(node.value)
    return [*found, "lcm", "tcd"]


def _module(file: str) -> str:
    return file.removesuffix(".py").removeprefix("plugins/sdkit-samplers/").removeprefix("src/").replace("/", ".")


def _imported(tree: Path, file: str) -> set[str]:
    """The solvers' files that a file imports, or that those import."""
    found: set[str] = set()
    waiting = [file]
    while waiting:
        text = (tree / waiting.pop()).read_text(encoding="utf-8")
        named = set(re.findall(r"^\s*from (\S+) import", text, re.MULTILINE))
        new = {path for path in solver_files() if _module(path) in named} - found
        found |= new
        waiting += new
    return found


def _one_of_each(schedulers: dict[str, Any]) -> dict[str, Any]:
    """Of the solvers that share some code, the first of each file."""
    first = {type(made).__module__: text for text, made in reversed(schedulers.items())}
    return {text: schedulers[text] for text in reversed(first.values())}


def _rules(schedulers: dict[str, Any]) -> str | None:
    from sdkit.testing import Skip, catalogue

    for entry in catalogue("scheduler"):
        for text, scheduler in schedulers.items():
            _start_clock()
            try:
                _try_rule(entry, scheduler)
            except Skip:
                continue
            except Exception as error:  # as above
                return f"{entry.id} {entry.name} ({text}): {error}"
    return None


def _try_rule(entry: Any, scheduler: Any) -> None:
    """As the kit tries it, without shrinking: that it fails is all we ask."""
    if entry.cases is None:
        entry.check(scheduler)
        return
    from hypothesis import HealthCheck, Phase, given, settings

    from sdkit.testing import Skip

    @settings(
        derandomize=True,
        deadline=None,
        max_examples=EXAMPLES,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(entry.cases())
    def body(case: Any) -> None:
        try:
            entry.check(scheduler, case=case)
        except Skip:
            return

    body()


class _Chosen:
    """Leaves to pytest the tests that concern the schedulers, and remembers what failed."""

    def __init__(self, texts: set[str], types: set[type]) -> None:
        self.texts = texts
        self.types = types
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        from hypothesis import settings

        settings.register_profile("few", settings.get_profile("ci"), max_examples=EXAMPLES)
        settings.load_profile("few")
        items[:] = [item for item in items if self._wanted(item)]

    def _wanted(self, item: Any) -> bool:
        said = item.callspec.params if hasattr(item, "callspec") else {}
        text, made = said.get("text"), said.get("scheduler")
        known = text in self.texts if isinstance(text, str) and "refused" not in item.name else True
        known = known and (made is None or type(made) in self.types)
        slow = item.get_closest_marker("slow") is not None
        return known and not slow and not any(name in item.name for name in LEFT_OUT)

    def pytest_runtest_setup(self, item: Any) -> None:
        _start_clock()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed = f"{report.nodeid} cannot be collected"


def _tests(tree: Path, file: str, schedulers: dict[str, Any]) -> str | None:
    import pytest

    folder = CORE if file.startswith(CORE) else SAMPLERS
    paths = [path for path in (HOLES, *TESTS[folder]) if (tree / path).exists()]
    chosen = _Chosen(set(schedulers), {type(made) for made in schedulers.values()})
    os.chdir(tree)
    # hypothesis wants its plugin loaded before the first strategy is used, and the rules have used some.
    options = ["-x", "-q", "-n=0", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    code = pytest.main([*options, *paths], plugins=[chosen])
    return None if code == 0 else chosen.failed or f"pytest ended with {code}"


# A run.


def lay_out(work: Path) -> Path:
    """Copy what the mutants need to a folder of their own."""
    tree = work / "tree"
    for name in COPIED:
        source, target = ROOT / name, tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy(source, target)
    (work / "ask.py").write_text(CLIENT, encoding="utf-8")
    return tree


@contextmanager
def judging(work: Path, tree: Path) -> Iterator[str]:
    """The command that asks for a verdict, while the warm process stands by."""
    door = work / "door"
    folders = (tree / "src", tree / "plugins/sdkit-samplers/src", tree)
    environment = dict(
        os.environ, PYTHONPATH=os.pathsep.join(map(str, folders)), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1"
    )
    command = [sys.executable, __file__, "--serve", str(tree), str(door)]
    server = subprocess.Popen(command, env=environment, cwd=tree)
    ask = [sys.executable, "-I", "-S", str(work / "ask.py"), str(door)]
    try:
        while not door.exists():
            if server.poll() is not None:
                raise SystemExit(f"The process that judges the mutants ended with {server.returncode} at its start.")
            time.sleep(0.1)
        yield " ".join(ask)
        subprocess.run([*ask, "stop"], check=False, stdout=subprocess.DEVNULL)
        with suppress(subprocess.TimeoutExpired):  # all is judged; a slow end is no failure
            server.wait(10)
    finally:
        server.kill()


def demand_sound(ask: str, file: str) -> None:
    """The file as it is must pass what its mutants are tried on.

    Raises:
        SystemExit: something fails without any mutant.
    """
    asked = subprocess.run([*ask.split(), file], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise SystemExit(f"{file} fails as it is, so its mutants say nothing: {asked.stdout.strip()}")


def try_mutants(work: Path, mutants: Sequence[tuple[Mutant, Any]], ask: str) -> list[Mutant]:
    """Have Cosmic Ray run them; the mutants with their verdicts, in the order of the source."""
    items, base = importlib.import_module("cosmic_ray.work_item"), importlib.import_module("cosmic_ray.work_db")
    database = base.WorkDB(str(work / "session.sqlite"), base.WorkDB.Mode.create)
    database.clear()
    database.add_work_items([items.WorkItem.single(str(i), spec) for i, (_, spec) in enumerate(mutants)])
    config = importlib.import_module("cosmic_ray.config").ConfigDict(
        {"test-command": ask, "timeout": WALL_SECONDS + 60, "distributor": {"name": "local"}}
    )
    importlib.import_module("cosmic_ray.commands").execute(database, config)
    judged = []
    for job, result in database.results:
        mutant, words = mutants[int(job)][0], _fold(result.output or "")
        if result.worker_outcome.value != "normal":
            raise SystemExit(f"Cosmic Ray could not run a mutant of {mutant.file}: {words}")
        verdict = "survived" if result.test_outcome.value == "survived" else "killed"
        judged.append(attrs.evolve(mutant, verdict=verdict, by="" if verdict == "survived" else words[:300]))
    return sorted(judged, key=lambda mutant: (mutant.file, mutant.line, mutant.after))


def run(files: Sequence[str], sample: int | None, seed: int, results: Path | None) -> list[Mutant]:
    """Try the mutants of the files, or a sample of them; prints each file as it is done.

    Raises:
        SystemExit: Cosmic Ray is not installed, or a file fails without any mutant.
    """
    if importlib.util.find_spec("cosmic_ray") is None:
        raise SystemExit("Cosmic Ray is not installed: pip install -r requirements-dev.txt")
    kept, judged = _read(results), []
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder, judging_in(Path(folder)) as (tree, ask):
        marks = {file: hashlib.sha256((tree / file).read_bytes()).hexdigest() for file in files}
        known = [file for file in files if kept.get(file, {}).get("sha256") == marks[file]]
        made = make_mutants(tree, [file for file in files if file not in known], sample, seed)
        for number, file in enumerate(files):
            if file in known:
                judged += [Mutant(**entry) for entry in kept[file]["mutants"]]
                continue
            if sample is None or number == 0:
                demand_sound(ask, file)
            began = time.perf_counter()
            done = try_mutants(Path(folder), [(mutant, spec) for mutant, spec in made if mutant.file == file], ask)
            judged += done
            if done:
                _say(file, done, time.perf_counter() - began)
            kept[file] = {"sha256": marks[file], "mutants": [attrs.asdict(mutant) for mutant in done]}
            if results is not None:
                results.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    return judged


def _say(file: str, mutants: Sequence[Mutant], seconds: float) -> None:
    survived = sum(mutant.verdict == "survived" for mutant in mutants)
    sys.stdout.write(f"{file}: {len(mutants)} mutants, {survived} survived, {seconds:.0f} s\n")
    sys.stdout.flush()


@contextmanager
def judging_in(work: Path) -> Iterator[tuple[Path, str]]:
    """A copy of the tree and the command that asks for a verdict on it."""
    tree = lay_out(work)
    with judging(work, tree) as ask:
        yield tree, ask


def _read(results: Path | None) -> dict[str, Any]:
    if results is None or not results.exists():
        return {}
    kept: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
    return kept


# What is said of it.


@frozen
class Score:
    """Figures of a file, or of all.

    Attributes:
        name: Whose.
        rules: Mutants killed by a rule of the kit.
        tests: Killed by a test, after every rule had passed.
        other: Killed because they cannot be imported or do not end.
        equivalent: Survivors that were judged to be no change.
        survived: The other survivors.
    """

    name: str
    rules: int
    tests: int
    other: int
    equivalent: int
    survived: int

    @property
    def mutants(self) -> int:
        """All of them."""
        return self.rules + self.tests + self.other + self.equivalent + self.survived

    @property
    def share(self) -> float:
        """Killed, of those that are not equivalent; 0 to 1."""
        real = self.mutants - self.equivalent
        return (real - self.survived) / real if real else 1.0


def score(name: str, mutants: Sequence[Mutant]) -> Score:
    """Count."""
    reasons = equivalent()
    killed = [mutant for mutant in mutants if mutant.verdict == "killed"]
    left = [mutant for mutant in mutants if mutant.verdict == "survived"]
    same = sum(mutant.key in reasons for mutant in left)
    rules = sum(mutant.by_rule for mutant in killed)
    tests = sum("::" in mutant.by or ".py" in mutant.by for mutant in killed if not mutant.by_rule)
    return Score(name, rules, tests, len(killed) - rules - tests, same, len(left) - same)


def table(mutants: Sequence[Mutant]) -> str:
    """A Markdown table, one line per file."""
    head = ("File", "Mutants", "Killed by rules", "by tests", "otherwise", "Equivalent", "Survived", "Score")
    files = sorted({mutant.file for mutant in mutants}, key=lambda file: (not file.startswith("src"), file))
    scores = [score(f"`{file}`", [mutant for mutant in mutants if mutant.file == file]) for file in files]
    scores.append(score("all", mutants))
    rows = [
        (s.name, s.mutants, s.rules, s.tests, s.other, s.equivalent, s.survived, f"{100 * s.share:.1f} %")
        for s in scores
    ]
    cells = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in cells) + "\n"


INTRO = """# Mutation score

A test suite is as good as the mistakes it notices. Here a tool makes small mistakes in the source of our own solvers,
one at a time: another operator, a number off by one, a comparison turned round, a decorator dropped. Each mutant is
tried on the rules of the [conformance kit](rules.md) with the schedulers that live in the mutated file, then on the
tests that name them. The score is the share of mutants on which something fails.

"""
METHOD = """
- **Killed by rules**: a rule of the kit fails, as anybody who runs `sdkit conform` would see it. **By tests**: only a
  test of ours fails (a law special to the method, or parity with diffusers). **Otherwise**: the module does not import,
  or a rule or test takes more than {cpu} seconds of processor time.
- **Equivalent**: survivors that cannot be told from the original; `tests/mutants/equivalent.toml` gives the reason of
  each. They do not count. **Score** = killed / (mutants - equivalent).
- Code that many solvers share (`moves.py`, `toward` in `euler.py`) is tried on one scheduler of each file that uses it.
- Rules and tests about all cases are tried on {examples} cases, not 25: the score is a lower bound.
- Not made, since they would pad the score: bit operators, `//` and `%` in place of others, programs Python does not
  compile, changes of annotations alone.
- Not among the files: `spacings.py` (no solver), `plugin.py`, `names.py` (names) and the packages' `__init__.py`.

Each mutant runs in a copy of the tree, in a fork of a process that has torch imported already. A test
(`tests/test_mutation.py`) tries a sample of the core's solvers with a fixed seed in every full run of the tests, and
demands a floor.
"""


def page(mutants: Sequence[Mutant], command: str) -> str:
    """The page, from what a run found."""
    version = importlib.metadata.version
    tools = f"Cosmic Ray {version('cosmic-ray')}, hypothesis {version('hypothesis')}, torch {version('torch')}"
    run_with = f"Run with {tools}, Python {platform.python_version()}: `{command}`.\n\n"
    parts = [INTRO, run_with, table(mutants), METHOD.format(cpu=CPU_SECONDS, examples=EXAMPLES)]
    missing = [file for file in solver_files() if file not in {mutant.file for mutant in mutants}]
    if missing:
        parts.append("\nNot run: " + ", ".join(f"`{file}`" for file in missing) + ".\n")
    reasons = equivalent()
    left = [mutant for mutant in mutants if mutant.verdict == "survived"]
    opened = [mutant for mutant in left if mutant.key not in reasons]
    same = [mutant for mutant in left if mutant.key in reasons]
    parts.append("\n## Survivors\n\n" + ("".join(map(_line, opened)) or "None.\n"))
    parts.append("\n## Equivalent mutants\n\n")
    parts.append("".join(_line(mutant, reasons[mutant.key]) for mutant in same) or "None.\n")
    parts.append("\nThis page is written by `python tools/mutation.py`.\n")
    return "".join(parts)


def _line(mutant: Mutant, reason: str = "") -> str:
    where = f"`{mutant.file}:{mutant.line}`" + (f" `{mutant.function}`" if mutant.function else "")
    change = f"``{_short(mutant.before)}`` became ``{_short(mutant.after) or 'nothing'}``"
    return f"- {where}: {change}.{' ' + reason if reason else ''}\n"


def _short(text: str) -> str:
    return text if len(text) <= 110 else text[:107] + "..."


def main(arguments: Sequence[str]) -> int:
    """Run it; 0 unless something is wrong with the run itself."""
    if arguments[:1] == ["--serve"]:
        serve(Path(arguments[1]), arguments[2])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", default=(), metavar="NAME")
    parser.add_argument("--sample", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, metavar="FILE")
    parser.add_argument("--page", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.sample is not None and options.results is not None:
        parser.error("--results keeps whole files; a --sample has none.")
    mutants = run(solver_files(options.files), options.sample, options.seed, options.results)
    sys.stdout.write("\n" + table(mutants) + "\n")
    reasons = equivalent()
    sys.stdout.write("".join(_line(m, reasons.get(m.key, "")) for m in mutants if m.verdict == "survived"))
    whole = options.sample is None and not options.files
    if target := options.page or (PAGE if whole else None):
        words = [word for name in ("files", "sample") for word in _said(name, getattr(options, name))]
        words += _said("seed", options.seed) if options.sample is not None else []
        target.write_text(page(mutants, " ".join(["python tools/mutation.py", *words])), encoding="utf-8")
    return 0


def _said(name: str, value: Any) -> list[str]:
    if value is None or value == ():
        return []
    return [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
