"""Addressed noise: a pure function of seed, stream and interval, and standard normal."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sdkit import AddressedNoise, Level, NoiseError, NoNoise, RectifiedFlow, TorchNoise, Trailing, scaled_linear
from sdkit.noise import standard_normal
from tests.oracles import rescaled

START, MIDDLE, STOP = Level(2, 0.1, 1.0), Level(1, 0.6, 0.8), Level(0, 1, 0)
seeds = st.integers(0, 2**64 - 1)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)

Draw = Callable[[AddressedNoise, Tensor], Tensor]
DRAWS: dict[str, Draw] = {
    "initial": lambda noise, like: noise.initial(like),
    "interval": lambda noise, like: noise(like, START, MIDDLE),
    "to-clean": lambda noise, like: noise(like, MIDDLE, STOP),
    "from-no-signal": lambda noise, like: noise(like, Level(1, 0, 1), MIDDLE),
}
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())


def empty(batch: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.empty((batch, *shape), dtype=dtype)


@every_draw
@given(batch=st.lists(seeds, min_size=1, max_size=4), shape=shapes)
def test_image_k_of_a_batch_equals_it_alone(draw: Draw, batch: list[int], shape: tuple[int, ...]) -> None:
    together = draw(AddressedNoise(tuple(batch)), empty(len(batch), *shape))
    for k, seed in enumerate(batch):
        assert torch.equal(together[k : k + 1], draw(AddressedNoise(seed), empty(1, *shape)))


@every_draw
@given(seed=seeds, shape=shapes)
def test_the_same_address_is_the_same_noise(draw: Draw, seed: int, shape: tuple[int, ...]) -> None:
    noise = AddressedNoise((seed,), "s")
    first = draw(noise, empty(1, *shape))
    noise(empty(1, 3), START, STOP)
    assert torch.equal(first, draw(noise, empty(1, *shape)))
    assert torch.equal(first, draw(pickle.loads(pickle.dumps(noise)), empty(1, *shape)))
    assert first.shape == (1, *shape)
    assert torch.isfinite(first).all()


@every_draw
def test_noise_has_the_type_of_the_latents(draw: Draw) -> None:
    exact = draw(AddressedNoise(7), empty(1, 5))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.equal(draw(AddressedNoise(7), empty(1, 5, dtype=dtype)), exact.to(dtype))


def test_shape_does_not_matter_only_the_count() -> None:
    noise = AddressedNoise(7)
    assert torch.equal(noise.initial(empty(1, 24)), noise.initial(empty(1, 2, 3, 4)).reshape(1, 24))


def correlation(a: Tensor, b: Tensor) -> float:
    return float((a * b).mean() / (a.std() * b.std()))


def test_draws_at_different_addresses_are_independent() -> None:
    count = 20_000
    like = empty(1, count)
    clean = Level(0, 1, 0)
    draws = [
        AddressedNoise(1).initial(like),
        AddressedNoise(2).initial(like),
        AddressedNoise(1 + 2**32).initial(like),
        AddressedNoise(1 + 2**63).initial(like),
        AddressedNoise(1, "other").initial(like),
        AddressedNoise(1)(like, START, MIDDLE),
        AddressedNoise(1)(like, MIDDLE, clean),
        AddressedNoise(1)(like, START, clean),
        AddressedNoise(1, "other")(like, START, MIDDLE),
        AddressedNoise(12)(like, START, MIDDLE),
        AddressedNoise(2)(like, START, MIDDLE),
    ]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert abs(correlation(a, b)) < 5 / math.sqrt(count)


def test_parts_of_an_address_do_not_run_into_each_other() -> None:
    like = empty(1, 8)
    pairs = [
        (AddressedNoise(1, "2"), AddressedNoise(12, "")),
        (AddressedNoise(1, "2|a"), AddressedNoise(12, "a")),
        (AddressedNoise(1, "a"), AddressedNoise(1, "a|")),
    ]
    for a, b in pairs:
        assert not torch.equal(a.initial(like), b.initial(like))


@given(st.sets(st.floats(-15, 15).map(lambda v: round(v, 6)), min_size=4, max_size=4))
def test_different_intervals_have_different_noise(log_snrs: set[float]) -> None:
    a, b, c, d = (Level(0, 1, math.exp(-v)) for v in sorted(log_snrs))
    like, noise = empty(1, 4), AddressedNoise(3)
    draws = [noise(like, *pair) for pair in ((a, b), (b, c), (c, d), (a, c), (b, d), (a, d))]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 6


@pytest.mark.parametrize(("shift", "steps"), [(1.0, 2), (2.0, 12), (2.0, 30), (3.0, 7)])
@given(factors=st.lists(st.floats(0.01, 100), min_size=3, max_size=3))
def test_the_address_does_not_depend_on_the_scale(shift: float, steps: int, factors: list[float]) -> None:
    grid = Trailing()(RectifiedFlow(shift), steps)
    other = rescaled(grid, [factors[i % 3] for i in range(len(grid))])
    like, noise = empty(1, 2), AddressedNoise(3)
    for i in range(steps):
        assert torch.equal(noise(like, grid[i], grid[i + 1]), noise(like, other[i], other[i + 1]))


def test_the_address_forgives_rounding_near_equal_parts_of_picture_and_noise() -> None:
    like, noise = empty(1, 2), AddressedNoise(3)
    exact = noise(like, START, Level(0, 0.5, 0.5))
    for sigma in (math.nextafter(0.5, 0), math.nextafter(0.5, 1)):
        assert torch.equal(noise(like, START, Level(0, 0.5, sigma)), exact)


# Standard normal, on fixed seeds: nothing here is left to chance.


def ndtr(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(torch.special.ndtr(torch.from_numpy(values)))


@pytest.mark.parametrize("seed", range(4))
def test_noise_is_standard_normal(seed: int) -> None:
    count = 100_000
    z = np.sort(AddressedNoise(seed).initial(empty(1, count)).numpy().ravel())
    assert abs(z.mean()) < 4 / math.sqrt(count)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / count)
    assert abs((z**3).mean()) < 4 * math.sqrt(15 / count)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / count)
    # Kolmogorov and Smirnov: 1.95 / sqrt(n) is passed by one sample in a thousand.
    below, at = ndtr(z), np.arange(count) / count
    assert max((below - at).max(), (at + 1 / count - below).max()) < 1.95 / math.sqrt(count)
    assert np.abs(z).max() > 3.9


def test_neighbours_in_a_draw_are_independent() -> None:
    z = AddressedNoise(5).initial(empty(1, 40_000)).flatten()
    for lag in (1, 2, 64, 20_000):
        assert abs(correlation(z[:-lag], z[lag:])) < 5 / math.sqrt(len(z) - lag)
    # Box and Muller make pairs from one radius: their squares must not be related either.
    assert abs(correlation(z[:20_000] ** 2 - 1, z[20_000:] ** 2 - 1)) < 5 / math.sqrt(20_000)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_any_count_is_given(count: int) -> None:
    assert standard_normal(b"key", count).shape == (count,)


def test_global_random_states_are_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    grid = Trailing()(scaled_linear(), 3)
    AddressedNoise((1, 2)).initial(empty(2, 8))
    AddressedNoise((1, 2))(empty(2, 8), START, STOP)
    TorchNoise((1, 2), grid).initial(empty(2, 8))
    TorchNoise((1, 2), grid)(empty(2, 8), grid[1], grid[2])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], before[1])


# Refusals.


@pytest.mark.parametrize("bad", [-1, 2**64, 1.5, "1", True, (), (1, -1), (1, 2.0), None])
def test_what_is_no_seed_is_refused(bad: object) -> None:
    for source in (AddressedNoise, TorchNoise):
        with pytest.raises(NoiseError, match=r"seed"):
            source(bad)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_of_another_size_is_refused(batch: int) -> None:
    grid = (START, STOP)
    for source in (AddressedNoise((1, 2)), TorchNoise((1, 2), grid)):
        with pytest.raises(NoiseError, match=f"2 seeds for a batch of {batch}"):
            source.initial(empty(batch, 4))
        with pytest.raises(NoiseError, match=f"2 seeds for a batch of {batch}"):
            source(empty(batch, 4), START, STOP)


def test_no_noise_refuses_to_be_asked() -> None:
    with pytest.raises(NoiseError, match="given no noise"):
        NoNoise().initial(empty(1, 2))
    with pytest.raises(NoiseError, match="given no noise"):
        NoNoise()(empty(1, 2), START, STOP)


# torch's own draws.


@given(batch=st.lists(seeds, min_size=1, max_size=3), shape=shapes)
def test_torch_noise_is_what_a_generator_draws(batch: list[int], shape: tuple[int, ...]) -> None:
    grid = Trailing()(scaled_linear(), 3)
    noise = TorchNoise(tuple(batch), grid)
    like = empty(len(batch), *shape, dtype=torch.float32)
    # Asked from the last to the first: there is no cursor.
    asked = [noise(like, grid[i], grid[i + 1]) for i in (2, 1, 0)][::-1]
    asked.insert(0, noise.initial(like))
    for k, seed in enumerate(batch):
        generator = torch.Generator().manual_seed(seed)
        for draw in asked:
            assert torch.equal(draw[k : k + 1], torch.randn((1, *shape), generator=generator))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_torch_noise_is_drawn_in_single_precision_for_latents_of_any_type(dtype: torch.dtype) -> None:
    single = TorchNoise((1, 2)).initial(empty(2, 20, dtype=torch.float32))
    assert torch.equal(TorchNoise((1, 2)).initial(empty(2, 20, dtype=dtype)), single.to(dtype))


def test_torch_noise_refuses_an_interval_it_has_no_draw_for() -> None:
    grid = Trailing()(scaled_linear(), 3)
    noise = TorchNoise(1, grid)
    for start, stop in ((grid[0], grid[2]), (START, STOP)):
        with pytest.raises(NoiseError, match="none of them"):
            noise(empty(1, 4), start, stop)
    with pytest.raises(NoiseError):
        TorchNoise(1)(empty(1, 4), grid[0], grid[1])


# Golden numbers: an address means the same noise for ever.

INITIAL = [0.9624473329405779, 0.22280617931425145, -1.4376419050741687, 1.6278417856524443, 0.9820984319445356]
INTERVAL = [1.2227514563225965, 1.351713385959864, -0.8980067315151141, -1.443874169441358, -0.732814647120831]
LAST_SEED = [0.05262561442910174, 0.23903978694905081, 0.01785462947169947, 0.5834760477945088, -0.1436712416827391]


def test_golden_numbers() -> None:
    like = empty(1, 5)
    noise = AddressedNoise(42)
    # The bits are exact everywhere; logarithm and cosine may differ in the last place between machines.
    np.testing.assert_allclose(noise.initial(like)[0].numpy(), INITIAL, rtol=1e-13)
    np.testing.assert_allclose(noise(like, START, MIDDLE)[0].numpy(), INTERVAL, rtol=1e-13)
    np.testing.assert_allclose(AddressedNoise(2**64 - 1, "frames").initial(like)[0].numpy(), LAST_SEED, rtol=1e-13)
    single = noise.initial(empty(1, 5, dtype=torch.float32))[0]
    np.testing.assert_allclose(single.numpy(), np.array(INITIAL, dtype=np.float32), rtol=2e-7)


def test_golden_start_of_a_torch_generator() -> None:
    # torch.Generator().manual_seed(42), as every tutorial prints it.
    drawn = TorchNoise(42).initial(empty(1, 4, dtype=torch.float32))[0]
    torch.testing.assert_close(drawn, torch.tensor([0.3367, 0.1288, 0.2345, 0.2303]), rtol=0, atol=5e-5)
