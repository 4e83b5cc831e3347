"""The laws of training: known minima, averages as stated, accumulation, and resuming bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import sdkit
from sdkit.testing import Gaussian
from sdkit_training import (
    Average,
    LogitNormal,
    MinSnr,
    Plain,
    Plan,
    Training,
    Uniform,
    fingerprint,
    load_images,
    losses,
    noised,
    normals,
    order,
    read_folder,
    targets,
    times_for,
    uniforms,
)

KINDS: dict[str, tuple[Any, Any]] = {
    "epsilon": (sdkit.Epsilon(), sdkit.scaled_linear()),
    "velocity": (sdkit.Velocity(), sdkit.scaled_linear().zero_terminal_snr()),
    "sample": (sdkit.Sample(), sdkit.cosine()),
    "edm": (sdkit.Edm(), sdkit.EdmSchedule()),
    "flow": (sdkit.Flow(), sdkit.RectifiedFlow(shift=3)),
}
MEAN, STD = 0.3, 0.5


def levels(kind: str, count: int = 6) -> list[sdkit.Level]:
    schedule = KINDS[kind][1]
    return [Uniform()(schedule, (k + 0.5) / count) for k in range(count)]


def exact(kind: str, at: sdkit.Level) -> Any:
    """The network that a perfect training of normal data would end in, from the exact ``E[x0 | x]``."""
    parametrization = KINDS[kind][0]
    problem = Gaussian.isotropic(2, MEAN, STD)

    def network(given: Tensor, time: Tensor, cond: Any) -> Tensor:
        scaling = parametrization(at)
        x = given / scaling.in_
        answer: Tensor = (problem(x, at) - x * scaling.skip) / scaling.out
        return answer

    return network


def least(kind: str, at: sdkit.Level) -> float:
    """The loss that no network can beat: the variance of x0 given x, in the network's own units."""
    variance = STD**2 * at.sigma**2 / (at.alpha**2 * STD**2 + at.sigma**2)
    return float(variance / KINDS[kind][0](at).out ** 2)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_loss_of_the_exact_denoiser_is_the_known_minimum(kind: str) -> None:
    count = 4000
    x0 = normals(1, "x0", count, 2, 1, dtype=torch.float64) * STD + MEAN
    noise = normals(1, "noise", count, 2, 1, dtype=torch.float64)
    for at in levels(kind):
        many = [at] * count
        got = float(losses(exact(kind, at), KINDS[kind][0], x0, noise, many, None).mean())
        assert got == pytest.approx(least(kind, at), rel=0.06), at

        def off(given: Tensor, time: Tensor, cond: Any, at: sdkit.Level = at) -> Tensor:
            answer: Tensor = exact(kind, at)(given, time, cond)
            return answer + 0.3 * math.sqrt(least(kind, at))

        assert float(losses(off, KINDS[kind][0], x0, noise, many, None).mean()) > got


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_batch_of_levels_is_each_item_at_its_own(kind: str) -> None:
    parametrization, at = KINDS[kind][0], levels(kind)
    x0, noise = (normals(2, name, len(at), 2, 3, dtype=torch.float64) for name in ("x0", "noise"))
    seen: list[Tensor] = []

    def network(given: Tensor, time: Tensor, cond: Any) -> Tensor:
        seen.append(time)
        return given * 0.7 + time.reshape(-1, 1, 1) * 0.01

    together = losses(network, parametrization, x0, noise, at, None, weighting=MinSnr(5))
    for k, level in enumerate(at):
        alone = losses(network, parametrization, x0[k : k + 1], noise[k : k + 1], [level], None, weighting=MinSnr(5))
        torch.testing.assert_close(together[k : k + 1], alone)
        x = level.alpha * x0[k] + level.sigma * noise[k]
        torch.testing.assert_close(noised(x0, noise, at)[k], x)
        assert float(seen[0][k]) == parametrization(level).time
        # what is trained is what is sampled: the target, put where the answer goes, gives x0 back
        back = x * parametrization(level).skip + targets(parametrization, x0, noise, at)[k] * parametrization(level).out
        torch.testing.assert_close(back, x0[k])


def test_min_snr_is_the_papers_for_noise_velocity_and_pictures() -> None:
    for at in levels("epsilon", 20):
        snr = (at.alpha / at.sigma) ** 2
        assert MinSnr(5)(at, sdkit.Epsilon()) == pytest.approx(min(snr, 5) / snr)
        assert MinSnr(5)(at, sdkit.Velocity()) == pytest.approx(min(snr, 5) / (snr + 1))
        assert MinSnr(5)(at, sdkit.Sample()) == pytest.approx(min(snr, 5))
    last = sdkit.scaled_linear().zero_terminal_snr().noisiest
    assert MinSnr(5)(last, sdkit.Velocity()) == 0
    with pytest.raises(sdkit.LevelError):
        MinSnr(5)(last, sdkit.Epsilon())


@pytest.mark.parametrize("kind", list(KINDS))
def test_uniform_times_reach_every_level_and_no_other(kind: str) -> None:
    schedule = KINDS[kind][1]
    drawn = [Uniform()(schedule, u) for u in uniforms(3, "u", 500)]
    ends = (Uniform()(schedule, 1e-12), Uniform()(schedule, 1 - 1e-12))
    low, high = schedule.cleanest.t, schedule.noisiest.t
    assert all(low <= at.t <= high for at in drawn)
    assert ends[0].t == pytest.approx(low, abs=1e-9)
    assert ends[1].t == pytest.approx(high, rel=1e-9)
    if schedule.train_steps is not None:
        assert all(at.t == int(at.t) for at in drawn)


def test_logit_normal_times_have_the_stated_distribution() -> None:
    schedule = sdkit.RectifiedFlow()
    times = LogitNormal(0.4, 0.8)
    drawn = torch.tensor([times(schedule, u).t for u in uniforms(4, "u", 4000)], dtype=torch.float64)
    logits = torch.logit(drawn)
    assert float(logits.mean()) == pytest.approx(0.4, abs=0.05)
    assert float(logits.std()) == pytest.approx(0.8, abs=0.05)
    assert isinstance(times_for(schedule), LogitNormal)
    assert isinstance(times_for(sdkit.scaled_linear()), Uniform)
    with pytest.raises(sdkit.ParameterError, match="take Uniform"):
        times(sdkit.scaled_linear(), 0.5)


@given(count=st.integers(1, 9), cuts=st.lists(st.integers(0, 40), min_size=2, max_size=6))
@settings(max_examples=40)
def test_an_order_walks_every_round_over_everything(count: int, cuts: list[int]) -> None:
    straight = order(5, "walk", count, 0, 40)
    for start in range(0, 40 - count + 1, count):
        assert sorted(straight[start : start + count]) == list(range(count))
    first, stop = min(cuts), max(cuts)
    assert order(5, "walk", count, first, stop) == straight[first:stop]


@given(decay=st.floats(0, 0.999), updates=st.integers(1, 12))
@settings(max_examples=30)
def test_an_average_is_the_sum_it_is_said_to_be(decay: float, updates: int) -> None:
    values = [float(v) for v in normals(6, "values", updates + 1, dtype=torch.float64)]
    tensor = torch.tensor([values[0]])
    average = Average({"w": tensor}, decay)
    for value in values[1:]:
        tensor.fill_(value)
        average.update({"w": tensor})
    shares = [min(decay, (1 + k) / (10 + k)) for k in range(1, updates + 1)]
    wanted = values[0] * math.prod(shares)
    for k in range(updates):
        wanted += values[k + 1] * (1 - shares[k]) * math.prod(shares[k + 1 :])
    assert float(average.values["w"]) == pytest.approx(wanted, abs=1e-5)


def training(plan: Plan, seed: int = 7, facts: dict[str, Any] | None = None, muon: Collection[str] = ()) -> Training:
    """A small regression whose every draw is addressed by step and row."""
    weights = {"a": normals(seed, "a", 3, 4).requires_grad_(), "b": normals(seed, "b", 2, 3).requires_grad_()}
    whole = plan.batch * plan.accumulate

    def objective(step: int, rows: range) -> Tensor:
        x = normals(seed, f"x {step}", whole, 4)[rows.start : rows.stop]
        return (torch.tanh(x @ weights["a"].T) @ weights["b"].T - x[:, :2]).square().mean()

    return Training(weights, objective, plan, facts, muon=muon)


def bits(one: Training) -> dict[str, Tensor]:
    return {**one.parameters, **{f"average {k}": v for k, v in one.weights.items()}}


@pytest.mark.parametrize("muon", [(), ("a",), ("a", "b")])
@pytest.mark.parametrize("average", [None, 0.9])
def test_a_resumed_training_is_the_straight_one_bit_for_bit(
    tmp_path: Path, average: float | None, muon: tuple[str, ...]
) -> None:
    plan = Plan(steps=12, batch=3, accumulate=2, learning_rate=0.05, warm_up=2, weight_decay=0.01, average=average)
    straight = training(plan, muon=muon)
    told = [(event.loss, event.gradient, event.rate) for event in straight.run()]
    first = training(plan, muon=muon)
    for event in first.run():
        if event.step == 5:
            break
    first.save(tmp_path / "stop.safetensors")
    second = training(plan, muon=muon)
    second.restore(tmp_path / "stop.safetensors")
    again = [(event.loss, event.gradient, event.rate) for event in second.run()]
    assert again == told[5:]
    assert bits(second).keys() == bits(straight).keys()
    for name, value in bits(straight).items():
        assert torch.equal(bits(second)[name], value), name
    assert b"pickle" not in (tmp_path / "stop.safetensors").read_bytes()


@pytest.mark.parametrize("shape", [(6, 4), (3, 8), (4, 2, 3, 3), (4, 5, 1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_takes_orthogonal_steps_of_the_size_of_adamws(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    if layout is torch.channels_last and len(shape) < 4:
        pytest.skip("a matrix has one layout")
    weight = normals(1, "weight", *shape).contiguous(memory_format=layout).requires_grad_()
    towards, before = normals(1, "towards", *shape), weight.detach().clone()

    def objective(step: int, rows: range) -> Tensor:
        return (weight * towards).sum()

    run = Training({"w": weight}, objective, Plan(steps=1, batch=1, learning_rate=0.1, warm_up=0, decay=0), muon=["w"])
    for _ in run.run():
        pass
    step = (before - weight.detach()).reshape(shape[0], -1).double()
    left, _, right = torch.linalg.svd(towards.reshape(shape[0], -1).double(), full_matrices=False)
    assert float((step * (left @ right)).sum() / step.norm() / len(right) ** 0.5) > 0.97  # nearly its polar factor
    assert float(step.square().mean().sqrt()) == pytest.approx(0.1 * 0.2, rel=0.3)  # as large as AdamW's are mostly


def test_muon_is_refused_for_what_is_no_matrix() -> None:
    with pytest.raises(sdkit.ParameterError, match="no parameter 'c'"):
        training(Plan(), muon=["c"])
    with pytest.raises(sdkit.ParameterError, match=r"matrices, and 'v' has the shape \[3\]"):
        Training({"v": torch.zeros(3, requires_grad=True)}, lambda step, rows: torch.zeros(()), Plan(), muon=["v"])


def test_a_checkpoint_of_muon_fits_parameters_that_lie_otherwise_in_memory(tmp_path: Path) -> None:
    def made(layout: torch.memory_format) -> Training:
        weight = normals(1, "w", 4, 3, 3, 3).contiguous(memory_format=layout).requires_grad_()

        def objective(step: int, rows: range) -> Tensor:
            return (weight - normals(1, f"{step}", 4, 3, 3, 3)).square().mean()

        return Training({"w": weight}, objective, Plan(steps=6, batch=1, learning_rate=0.05, warm_up=0), muon=["w"])

    straight, first, second = (
        made(one) for one in (torch.contiguous_format, torch.channels_last, torch.contiguous_format)
    )
    for _ in straight.run():
        pass
    for event in first.run():
        if event.step == 3:
            break
    second.restore(first.save(tmp_path / "stop.safetensors"))
    for _ in second.run():
        pass
    # bfloat16 inside Muon sums in another order; that is all that may differ
    torch.testing.assert_close(second.parameters["w"], straight.parameters["w"], atol=2e-3, rtol=0)


def test_accumulated_gradients_are_those_of_the_large_batch() -> None:
    large = training(Plan(steps=5, batch=6, learning_rate=0.05))
    small = training(Plan(steps=5, batch=2, accumulate=3, learning_rate=0.05))
    losses_of = [[event.loss for event in one.run()] for one in (large, small)]
    assert losses_of[0] == pytest.approx(losses_of[1], rel=1e-5)
    for name, value in large.parameters.items():
        torch.testing.assert_close(small.parameters[name], value, rtol=1e-4, atol=1e-5)


def test_the_loss_falls_and_the_rate_has_the_stated_curve() -> None:
    plan = Plan(steps=200, batch=16, learning_rate=0.05, warm_up=9, decay=0.5)
    told = list(training(plan).run())
    assert told[-1].loss < told[0].loss / 3
    assert told[0].rate == pytest.approx(0.005) and told[50].rate == 0.05
    assert told[-1].rate < 0.05 * 0.02
    assert [event.step for event in told] == list(range(1, 201))


def test_a_checkpoint_of_another_training_is_refused_in_a_sentence(tmp_path: Path) -> None:
    plan = Plan(steps=4, batch=2, learning_rate=0.01)
    one = training(plan, facts={"data": "a"})
    next(one.run())
    one.save(tmp_path / "one.safetensors")
    for other, match in (
        (training(Plan(steps=5, batch=2, learning_rate=0.01), facts={"data": "a"}), "steps=4.* has 5"),
        (training(plan, facts={"data": "b"}), "data='a'.* has 'b'"),
    ):
        before = {name: value.clone() for name, value in other.parameters.items()}
        with pytest.raises(sdkit.FileError, match=match):
            other.restore(tmp_path / "one.safetensors")
        assert other.step == 0 and all(torch.equal(other.parameters[name], value) for name, value in before.items())
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(sdkit.FileError, match="damaged"):
        one.restore(tmp_path / "bad.safetensors")
    with pytest.raises(sdkit.FileError, match="cannot be read"):
        one.restore(tmp_path / "none.safetensors")


def test_a_loss_that_is_no_number_ends_the_training_before_it_spoils_the_weights() -> None:
    weight = torch.ones(2, requires_grad=True)
    one = Training({"w": weight}, lambda step, rows: (weight * (math.nan if step == 1 else 1.0)).sum(), Plan(steps=3))
    with pytest.raises(sdkit.NonFiniteError, match="update 2"):
        list(one.run())
    assert bool(torch.isfinite(weight).all())


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("batch", 1.5), ("learning_rate", math.nan), ("decay", 2), ("clip", 0), ("accumulate", True)],
)
def test_a_plan_says_what_is_wrong(field: str, value: Any) -> None:
    with pytest.raises(sdkit.ParameterError, match=field):
        Plan(**{field: value})


# Data


def picture(path: Path, colour: tuple[int, ...], size: tuple[int, int] = (8, 8)) -> None:
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(path)


def test_captions_stand_beside_the_pictures_or_in_one_file(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (255, 0, 0))
    picture(tmp_path / "b.png", (0, 0, 255))
    (tmp_path / "a.txt").write_text("a red\n square\n")
    with pytest.raises(sdkit.FileError, match=r"'b.png' has no caption; write one into 'b.txt'"):
        read_folder(tmp_path)
    (tmp_path / "b.txt").write_text("a blue square")
    assert [one.captions for one in read_folder(tmp_path)] == [("a red square",), ("a blue square",)]
    table = tmp_path / "captions.json"
    table.write_text(json.dumps({"b.png": ["blue", "a blue thing"]}))
    assert [(one.file.name, one.captions) for one in read_folder(tmp_path, table)] == [
        ("b.png", ("blue", "a blue thing"))
    ]
    lines = tmp_path / "metadata.jsonl"
    lines.write_text('{"file_name": "a.png", "text": "red"}\n')
    assert read_folder(tmp_path, lines)[0].captions == ("red",)
    for text, match in (
        ("[]", "no file of captions"),
        ('{"c.png": "x"}', "has not: c.png"),
        ('{"a.png": 3}', "caption 3"),
    ):
        table.write_text(text)
        with pytest.raises(sdkit.FileError, match=match):
            read_folder(tmp_path, table)
    with pytest.raises(sdkit.FileError, match="holds no pictures"):
        read_folder(_empty(tmp_path))


def _empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def test_pictures_cover_the_size_and_transparency_needs_a_colour(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (255, 0, 0), (20, 10))
    examples = read_folder(tmp_path, default="x")
    made = load_images(examples, (8, 4))
    assert made.shape == (1, 3, 4, 8) and torch.equal(made[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    before = fingerprint(examples)
    picture(tmp_path / "a.png", (255, 0, 0, 0))
    assert fingerprint(examples) != before
    with pytest.raises(sdkit.InvalidRequest, match="transparent"):
        load_images(examples, (8, 4))
    assert torch.equal(load_images(examples, (8, 4), background="white"), torch.ones(1, 3, 4, 8))
    with pytest.raises(sdkit.ParameterError, match="no colour"):
        load_images(examples, (8, 4), background="nocolour")


def test_weights_are_one_unless_asked_for() -> None:
    assert Plain()(levels("flow")[0], sdkit.Flow()) == 1.0
