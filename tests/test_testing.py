"""The conformance kit: it passes what is right, and names what is wrong with what is not."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor

import sdkit
from sdkit import AddressedNoise, Grid, Level, registry, testing
from sdkit.cli import main
from sdkit.noise import Addressed
from sdkit.plugins import Entry
from sdkit.testing import NonConformance, Skip, apply, catalogue
from tests.mutants.schedulers import MUTANTS
from tests.toys import ToyAutoencoder

FIRST_PARTY = ("core", "samplers", "emoji")
RULES = {(rule.subject, rule.name): rule for rule in catalogue()}


@pytest.fixture
def seeds_may_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants that draw from global states must get as far as the rule that looks for it."""
    monkeypatch.undo()


def entries(kind: str) -> list[Entry]:
    return [entry for entry in registry().entries(kind) if entry.plugin in FIRST_PARTY]


def parts(kind: str) -> list[Any]:
    found = []
    for entry in entries(kind):
        if entry.component.name != "table":  # needs a file
            found.append(pytest.param(entry.full_name, id=entry.full_name))
    return found


@pytest.mark.parametrize("name", parts("scheduler"))
def test_first_party_schedulers_conform(name: str) -> None:
    broken = [
        f"{outcome.rule.id} {outcome.rule.name}: {outcome.detail}"
        for outcome in testing.run(registry().make("scheduler", name), "scheduler", examples=12)
        if outcome.state == "fail"
    ]
    assert broken == []


@pytest.mark.parametrize("kind", ["spacing", "schedule", "parametrization", "noise"])
def test_first_party_spacings_schedules_parametrizations_and_noise_conform(kind: str) -> None:
    for entry in entries(kind):
        if entry.component.name == "table":
            continue
        # of one frame it is noise as any; the frames of a clip have noise in common, as they must
        needed = {"circle": "(frames=1)"}.get(entry.component.name, "")
        part = registry().make(kind, entry.full_name + needed)
        broken = [(o.rule.name, o.detail) for o in testing.run(part, kind) if o.state == "fail"]
        assert broken == [], entry.full_name


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_each_mutant_is_caught_by_the_rule_it_names(name: str, request: pytest.FixtureRequest) -> None:
    mutant, expected = MUTANTS[name]
    if expected == "global_state":
        request.getfixturevalue("seeds_may_be_drawn")
    state, numpys, pythons = torch.get_rng_state(), np.random.get_state(), __import__("random").getstate()
    with pytest.raises(NonConformance) as caught:
        apply(RULES["scheduler", expected], mutant, examples=15)
    torch.set_rng_state(state)
    np.random.set_state(numpys)
    __import__("random").setstate(pythons)
    assert "\n" not in str(caught.value)


def test_there_are_enough_mutants_and_they_try_most_rules() -> None:
    assert len(MUTANTS) >= 25
    tried = {rule for _, rule in MUTANTS.values()}
    assert {rule.name for rule in catalogue("scheduler")} - tried <= {"parametrizations"}


def test_a_class_gets_one_test_per_rule_and_xfails_need_a_reason() -> None:
    class TestEuler(testing.SchedulerConformance):
        scheduler = sdkit.Euler()
        xfail: ClassVar = {"order": "for the sake of this test"}

    names = [name for name in dir(TestEuler) if name.startswith("test_")]
    assert len(names) == len(catalogue("scheduler"))
    TestEuler().test_s4_point_mass()  # type: ignore[attr-defined]
    (marked,) = TestEuler.test_s7_order.pytestmark  # type: ignore[attr-defined]
    assert marked.name == "xfail"
    assert marked.kwargs == {"reason": "for the sake of this test", "strict": True}
    for xfail, message in (({"nonsense": "x"}, "names no rule 'nonsense'"), ({"order": " "}, "needs a reason")):
        with pytest.raises(TypeError, match=message):
            type("TestBad", (testing.SchedulerConformance,), {"scheduler": sdkit.Euler(), "xfail": xfail})


class TestHeun(testing.SchedulerConformance):
    """The classes work as people use them."""

    scheduler = sdkit.Heun()
    examples = 8


class TestKarras(testing.SpacingConformance):
    spacing = sdkit.Karras()


class TestFlowSchedule(testing.ScheduleConformance):
    schedule = sdkit.RectifiedFlow(3)


class TestVelocity(testing.ParametrizationConformance):
    parametrization = sdkit.Velocity()


class TestToyDecoder(testing.DecoderConformance):
    decoder = ToyAutoencoder()


class TestAddressedNoise(testing.NoiseConformance):
    noise = Addressed()


class TestCoreEuler(testing.PluginConformance):
    plugin = next(e for e in registry().entries("scheduler") if e.full_name == "core:euler")


class OffByOne:
    def __call__(self, schedule: sdkit.NoiseSchedule, steps: int, /) -> sdkit.Grid:
        return sdkit.Karras()(schedule, steps + 1)


class Repeats:
    def __call__(self, schedule: sdkit.NoiseSchedule, steps: int, /) -> sdkit.Grid:
        grid = sdkit.Karras()(schedule, steps)
        return (grid[0], *grid[:-1]) if steps > 2 else grid


class StartsLate:
    def __call__(self, schedule: sdkit.NoiseSchedule, steps: int, /) -> sdkit.Grid:
        return sdkit.Karras()(schedule, steps + 1)[1:]


class NearlyClean:
    starts_noisiest = False

    def __call__(self, schedule: sdkit.NoiseSchedule, steps: int, /) -> sdkit.Grid:
        return (*sdkit.Karras()(schedule, 40 * steps)[-steps - 1 :],)


class Forgetful:
    calls = 0

    def __call__(self, schedule: sdkit.NoiseSchedule, steps: int, /) -> sdkit.Grid:
        Forgetful.calls += 1
        return sdkit.Karras(rho=5 + Forgetful.calls % 2)(schedule, steps)


class WrongInverse(sdkit.RectifiedFlow):  # type: ignore[misc]
    def time(self, log_snr: float, /) -> float:
        return super().time(log_snr) ** 1.01


class NoisyClean(sdkit.EdmSchedule):  # type: ignore[misc]
    @property
    def clean(self) -> sdkit.Level:
        return sdkit.Level(0.0, 1.0, 1e-3)


class Rising(sdkit.RectifiedFlow):  # type: ignore[misc]
    def level(self, t: float, /) -> sdkit.Level:
        return super().level(1 - t if 0.2 < t < 0.8 else t)


class WrongTarget(sdkit.Velocity):  # type: ignore[misc]
    def target(self, x0: Tensor, noise: Tensor, level: sdkit.Level, /) -> Tensor:
        return x0 * level.alpha - noise * level.sigma


class Unscaled(sdkit.Sample):  # type: ignore[misc]
    def __call__(self, level: sdkit.Level, /) -> sdkit.Scaling:
        return sdkit.Scaling(0.0, 1.0, 1.0, level.t)


class Unclamped(ToyAutoencoder):
    def __call__(self, latents: Tensor, /) -> Tensor:
        return super().__call__(latents) * 2


class OverTheBatch(ToyAutoencoder):
    def __call__(self, latents: Tensor, /) -> Tensor:
        return super().__call__(latents - latents.mean(0, keepdim=True) * (len(latents) > 1))


class Writing(ToyAutoencoder):
    def __call__(self, latents: Tensor, /) -> Tensor:
        return super().__call__(latents.mul_(0.5))


class Mirrored(ToyAutoencoder):
    def encode(self, images: Tensor, /) -> Tensor:
        return 1 - super().encode(images)


class WrongNoise:
    """Addressed noise with one thing changed."""

    def __init__(self, change: Callable[[Tensor, Grid, Level | None], Tensor]) -> None:
        self.change = change

    def __call__(self, seeds: tuple[int, ...], grid: Grid, /) -> Any:
        return WrongSource(AddressedNoise(seeds), grid, self.change)


class WrongSource:
    def __init__(
        self, right: AddressedNoise, grid: Grid, change: Callable[[Tensor, Grid, Level | None], Tensor]
    ) -> None:
        self.right, self.grid, self.change = right, grid, change

    def initial(self, like: Tensor, /) -> Tensor:
        return self.change(self.right.initial(like), self.grid, None)

    def __call__(self, like: Tensor, start: Level, stop: Level, /) -> Tensor:
        return self.change(self.right(like, start, stop), self.grid, start)


class InOrder:
    """Draws from one generator, one draw after the other, as most tools do."""

    def __init__(self, seeds: tuple[int, ...], grid: Grid, /) -> None:
        self.generator = torch.Generator().manual_seed(seeds[0])

    def initial(self, like: Tensor, /) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)

    def __call__(self, like: Tensor, start: Level, stop: Level, /) -> Tensor:
        return self.initial(like)


class SameInAllSteps:
    def __init__(self, seeds: tuple[int, ...], grid: Grid, /) -> None:
        self.right, self.grid = AddressedNoise(seeds), grid

    def initial(self, like: Tensor, /) -> Tensor:
        return self.right.initial(like)

    def __call__(self, like: Tensor, start: Level, stop: Level, /) -> Tensor:
        return self.right(like, self.grid[0], self.grid[1])


def seeded_globally(noise: Tensor, grid: Grid, start: Level | None) -> Tensor:
    torch.manual_seed(int(torch.initial_seed()) + 1)
    return noise


@pytest.mark.parametrize(
    ("subject", "part", "expected"),
    [
        ("spacing", OffByOne(), "number_of_steps"),
        ("spacing", Repeats(), "increases"),
        ("spacing", StartsLate(), "ends"),
        ("spacing", Forgetful(), "pure"),
        ("schedule", WrongInverse(), "inverse"),
        ("schedule", NoisyClean(), "clean"),
        ("schedule", Rising(), "monotone"),
        ("parametrization", WrongTarget(), "inverse"),
        ("parametrization", Unscaled(), "in_scale"),
        ("decoder", Unclamped(), "output"),
        ("decoder", OverTheBatch(), "items_of_a_batch"),
        ("decoder", Writing(), "deterministic"),
        ("decoder", Mirrored(), "round_trip"),
        ("spacing", NearlyClean(), "ends"),
        ("noise", WrongNoise(lambda noise, grid, start: noise.float()), "output"),
        ("noise", InOrder, "purity"),
        ("noise", WrongNoise(lambda noise, grid, start: noise - noise.mean(0) / 9), "items_of_a_batch"),
        ("noise", WrongNoise(lambda noise, grid, start: noise * (1 if start else len(grid))), "start"),
        ("noise", WrongNoise(lambda noise, grid, start: noise * 1.1), "distribution"),
        ("noise", SameInAllSteps, "distribution"),
        ("noise", WrongNoise(lambda noise, grid, start: noise.abs()), "distribution"),
        ("noise", WrongNoise(seeded_globally), "global_state"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_wrong_parts_of_other_kinds_are_caught(subject: str, part: Any, expected: str) -> None:
    failed = [outcome.rule.name for outcome in testing.run(part, subject) if outcome.state == "fail"]
    assert expected in failed


def test_what_does_not_apply_is_skipped_with_the_reason() -> None:
    with pytest.raises(Skip, match="not stochastic"):
        apply(RULES["scheduler", "distribution"], sdkit.Euler())
    with pytest.raises(Skip, match="no `latent`"):
        apply(RULES["decoder", "output"], lambda latents: latents)


def test_rules_are_complete_and_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "rules.md").read_text(encoding="utf-8")
    listed = re.findall(r"^### ([A-Z]\d+) `(\w+)`$", page, re.MULTILINE)
    assert listed == [(rule.id, rule.name) for rule in catalogue()]
    for rule in catalogue():
        for text in (rule.text, rule.why, rule.hint):
            assert text in page
        assert rule.check.__name__ in testing.__all__
        assert rule.check.__doc__


@pytest.mark.parametrize(
    "problem",
    [
        testing.Gaussian.isotropic(2),
        testing.Gaussian(torch.tensor([0.4, -0.2]).double(), torch.tensor([[0.3, 0.12], [0.12, 0.2]]).double()),
        testing.Mixture(),
        testing.PointMass(torch.full((1, 2, 1), 0.3, dtype=torch.float64)),
    ],
    ids=["isotropic", "tilted", "mixture", "point"],
)
def test_the_problems_flow_solves_their_own_equation(problem: Any) -> None:
    """d(x / sigma) / d(alpha / sigma) = E[x0 | x], by central differences: the two halves of a problem fit each other."""
    schedule = sdkit.scaled_linear()
    start = schedule.level(700)
    normal = torch.linspace(-2, 2, 10, dtype=torch.float64).reshape(1, 2, 5)
    x = problem.start(start, normal)
    for t in (600.0, 400.0, 150.0):
        here = schedule.level(t)
        a, b = (schedule.level(schedule.time(here.log_snr + d)) for d in (-1e-4, 1e-4))
        ends = [problem.flow(x, start, level) / level.sigma for level in (a, b)]
        slope = (ends[1] - ends[0]) / (b.alpha / b.sigma - a.alpha / a.sigma)
        assert torch.allclose(slope, problem(problem.flow(x, start, here), here), atol=1e-5)


def test_the_tilted_gaussian_has_its_covariance() -> None:
    covariance = torch.tensor([[0.3, 0.12], [0.12, 0.2]]).double()
    problem = testing.Gaussian(torch.tensor([0.4, -0.2]).double(), covariance)
    normal = sdkit.AddressedNoise((1,)).initial(torch.empty(1, 2, 20000, dtype=torch.float64))
    drawn = problem.start(sdkit.Level(0, 1.0, 0.0), normal)[0]
    assert torch.allclose(torch.cov(drawn), covariance, atol=0.01)
    assert torch.allclose(drawn.mean(1), torch.tensor([0.4, -0.2]).double(), atol=0.02)


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main(["conform", *arguments])
    return int(caught.value.code or 0), capsys.readouterr().out


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out = run_cli(capsys, "ddim(eta=1)", "karras", "--examples", "5", "--html", str(tmp_path / "a.html"))
    assert code == 0
    assert re.search(r"scheduler +ddim\(eta=1\) +[.-]+ +\d+\.\d s  weak order 0\.98", out)
    assert "spacing" in out
    assert out.strip().endswith("0 broken")
    page = (tmp_path / "a.html").read_text()
    assert page.count("<tr>") == 1 + len(catalogue("scheduler")) + len(catalogue("spacing"))


def test_the_command_tries_generators_filters_and_sinks_of_frames(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run_cli(capsys, "zoom", "blend(times=3)", "apng", "ping-pong")
    assert code == 0
    table = {line.split()[0]: line.split()[1] for line in out.splitlines()[:-1]}
    assert table == {"frames": "zoom", "frame-filter": "ping-pong", "frame-sink": "apng"}
    assert re.search(r"^frames +zoom +\.{12} ", out, re.MULTILINE)
    rules = sum(len(catalogue(subject)) for subject in ("frames", "frame_filter", "frame_filter", "frame_sink"))
    assert out.strip().endswith(f"{rules} rules tried, 0 broken")
    assert run_cli(capsys, "--rules", "--kind", "frame-sink")[1].startswith("K1 reads_back")


def test_the_command_finds_a_sink_that_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sdkit.Registry.of({"bad": BadSinks()})
    monkeypatch.setattr(sdkit.Registry, "discover", classmethod(lambda cls, environ=None: made))
    registry.cache_clear()
    try:
        code, out = run_cli(capsys, "bad:")
        assert code == 1
        assert "K2 manifest: it reads ''" in out
        assert not re.search("^frame-filter", out, re.MULTILINE), "what needs a parameter is not tried unasked"
        assert run_cli(capsys, "halves(share=2)")[0] == 1
    finally:
        registry.cache_clear()


class BadSinks:
    @staticmethod
    @sdkit.hookimpl
    def sdkit_components() -> list[sdkit.Component]:
        return [
            sdkit.Component("frame-sink", "nothing", f"{__name__}:Nothing", "forgets what it is told"),
            sdkit.Component("frame-filter", "halves", f"{__name__}:halves", "drops frames"),
        ]


@attrs.frozen
class Nothing:
    suffixes = (".apng",)

    def open(self, path: Path, timeline: Any, size: Any, manifest: str, /) -> Any:
        import sdkit_frames.apng

        return sdkit_frames.apng.Apng().open(path, timeline, size, "")

    def read(self, path: Path, /, start: Any = 0) -> Any:
        import sdkit_frames.apng

        return sdkit_frames.apng.Apng().read(path, start)


def halves(share: int | None = None) -> Any:
    if share is None:
        raise sdkit.ParameterError("Halving needs a share.")

    class Halves:
        window = 1

        def timeline(self, timeline: Any, /) -> Any:
            return timeline

        def __call__(self, frames: Any, timeline: Any, /) -> Any:
            return (frame for frame in frames if frame.index % share == 0)

    return Halves()


def test_the_command_says_what_is_broken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = sdkit.Registry.of({"bad": BadPlugin()})
    monkeypatch.setattr(sdkit.Registry, "discover", classmethod(lambda cls, environ=None: made))
    registry.cache_clear()
    try:
        code, out = run_cli(capsys, "bad:", "--examples", "5")
        assert code == 1
        assert "S4 point_mass: " in out
        code, out = run_cli(capsys, "bad-one", "--json", "--examples", "5")
        assert code == 1
        rows = {row["rule_name"]: row for row in json.loads(out)}
        assert rows["point_mass"]["state"] == "fail"
        assert rows["traits"]["state"] == "pass"
        assert run_cli(capsys, "nothing:")[0] == 2
        assert run_cli(capsys, "nothing")[0] == 2
    finally:
        registry.cache_clear()


class BadPlugin:
    @staticmethod
    @sdkit.hookimpl
    def sdkit_components() -> list[sdkit.Component]:
        return [sdkit.Component("scheduler", "bad-one", f"{__name__}:bad_one", "wrong on purpose")]


def bad_one() -> Any:
    return MUTANTS["one_level_late"][0]


def test_the_command_tries_how_plugins_are_packaged(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run_cli(capsys, "core:", "--kind", "plugin", "--json")
    assert code == 0
    rows = json.loads(out)
    assert {row["name"] for row in rows} == {e.full_name for e in registry().entries() if e.plugin == "core"}
    spelled = {row["name"]: row["detail"] for row in rows if row["rule_name"] == "spelling" and row["state"] == "pass"}
    assert spelled["core:ddim"] == "ddim"
    assert spelled["core:addressed-1"] == "addressed-1"
    code, out = run_cli(capsys, "karras", "--kind", "plugin")
    assert (code, out.strip().splitlines()[-1]) == (0, "4 rules tried, 0 broken")
    assert run_cli(capsys, "nothing", "--kind", "plugin")[0] == 2


def test_what_cannot_be_written_as_text_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sdkit.Registry.of({"bad": BadPlugin()})
    monkeypatch.setattr(sdkit.Registry, "discover", classmethod(lambda cls, environ=None: made))
    registry.cache_clear()
    try:
        with pytest.raises(NonConformance, match="its Mutant cannot be written as text"):
            apply(RULES["plugin", "spelling"], made.find("scheduler", "bad-one"))
    finally:
        registry.cache_clear()


def test_the_command_prints_the_rules(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run_cli(capsys, "--rules", "--kind", "spacing")
    assert code == 0
    assert out.count("Rule: ") == len(catalogue("spacing"))
    assert math.isfinite(len(out))
