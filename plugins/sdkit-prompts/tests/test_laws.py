"""Weight laws and chunks, each against a computation of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdkit import InvalidRequest, ParameterError
from sdkit_prompts import laws
from sdkit_prompts.chunks import Marks, chunked, encode
from sdkit_prompts.tree import Break, Embedding, Text

BEGIN, END, COMMA = 1000, 1001, 44


def tensor(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Laws.


def test_a1111_multiplies_and_keeps_the_mean() -> None:
    z, w = tensor(2, 5, 3) + 0.5, torch.tensor([[1, 1.5, 0.5, 1, 1], [1, 1, 1, 1, 2.0]])
    found = laws.a1111(z, w).numpy()
    for row in range(2):
        by_hand = np.stack([z.numpy()[row, t] * w.numpy()[row, t] for t in range(5)])
        by_hand = by_hand * (z.numpy()[row].sum() / by_hand.sum())
        np.testing.assert_allclose(found[row], by_hand, rtol=1e-12)
        np.testing.assert_allclose(found[row].mean(), z.numpy()[row].mean(), rtol=1e-12)
    no_norm = laws.a1111(z, w, keep_mean=False).numpy()
    np.testing.assert_allclose(no_norm, z.numpy() * w.numpy()[..., None], rtol=1e-12)


def test_a1111_leaves_what_has_no_mean() -> None:
    z = torch.tensor([[1.0, -1.0], [0.5, -0.5]])
    assert torch.equal(laws.a1111(z, torch.tensor([2.0, 1.0])), torch.tensor([[2.0, -2.0], [0.5, -0.5]]))


def test_comfyui_moves_along_the_line_from_the_empty_prompt() -> None:
    z, empty, w = tensor(4, 3), tensor(4, 3, seed=2), torch.tensor([1.0, 0.0, 0.5, 2.0])
    found = laws.comfyui(z, w, empty).numpy()
    for t in range(4):
        for i in range(3):
            line = np.interp(float(w[t]), [0, 1], [float(empty[t, i]), float(z[t, i])])
            if w[t] <= 1:
                assert found[t, i] == pytest.approx(line)
            else:  # as far beyond z as the empty prompt is before it
                assert found[t, i] - float(z[t, i]) == pytest.approx(float(z[t, i]) - float(empty[t, i]))


def test_compel_takes_the_mean_with_the_prompts_that_lack_the_words() -> None:
    z, empty, a, b = tensor(4, 3), tensor(4, 3, seed=2), tensor(4, 3, seed=3), tensor(4, 3, seed=4)
    w = torch.tensor([1.0, 0.5, 0.25, 1.4])
    found = laws.compel(z, w, empty, [(a, 0.5), (b, 0.25)]).numpy()
    parts = [1.0, 1.0, math.tan(0.75 * math.pi / 2)]  # 0.5 is half-way: as much of the one as of the other
    rows = [e.numpy() + (p.numpy() - e.numpy()) * w.numpy()[:, None] for p, e in ((z, empty), (a, empty), (b, empty))]
    np.testing.assert_allclose(found, np.average(rows, axis=0, weights=parts), rtol=1e-6)
    assert laws.share(1) == 0
    gone = laws.compel(z, torch.ones(4), empty, [(a, 0.0)])
    np.testing.assert_allclose(gone.numpy(), a.numpy(), atol=1e-4)


@given(st.sampled_from(laws.LAWS))
def test_weights_of_one_change_nothing(law: str) -> None:
    z, empty = tensor(4, 3), tensor(4, 3, seed=2)
    found = laws.a1111(z, torch.ones(4)) if law == "a1111" else getattr(laws, law)(z, torch.ones(4), empty)
    torch.testing.assert_close(found, z)


# Chunks.

MARKS = Marks(BEGIN, END, size=10)
TOKENS = st.lists(st.integers(1, 50), max_size=40)


def letters(text: str) -> list[int]:
    """A tokenizer: a token per character."""
    return [ord(letter) for letter in text]


def words_of(ids: Sequence[Sequence[int]]) -> list[list[int]]:
    return [[i for i in row if i not in (BEGIN, END)] for row in ids]


@given(TOKENS, st.integers(1, 12), st.booleans())
def test_no_token_is_lost_and_every_chunk_has_its_marks(tokens: list[int], size: int, commas: bool) -> None:
    marks = Marks(BEGIN, END, size=size, comma=COMMA if commas else None, backtrack=4)
    text = "".join(chr(token) for token in tokens)
    found = chunked((Text(text, 1.5),), letters, marks)
    assert [i for row in words_of(found.ids) for i in row] == tokens
    for ids, weights, parts in zip(found.ids, found.weights, found.parts, strict=True):
        assert len(ids) == len(weights) == len(parts) == size + 2
        assert ids[0] == BEGIN
        assert END in ids
        assert all(
            (w == 1.5) == (i not in (BEGIN, END)) == (p == 0) for i, w, p in zip(ids, weights, parts, strict=True)
        )
    assert not found.cut
    assert found.report == ""
    if not commas:
        assert len(found.ids) == max(1, math.ceil(len(tokens) / size))


def test_a_comma_near_the_end_is_where_a1111_breaks() -> None:
    text = "abcdef,ghijk"
    marks = Marks(BEGIN, END, size=10, comma=COMMA, backtrack=4)
    assert words_of(chunked((Text(text),), letters, marks).ids) == [letters("abcdef,"), letters("ghijk")]
    far = Marks(BEGIN, END, size=10, comma=COMMA, backtrack=3)
    assert words_of(chunked((Text(text),), letters, far).ids) == [letters("abcdef,ghi"), letters("jk")]
    assert words_of(chunked((Text(text),), letters, MARKS).ids) == [letters("abcdef,ghi"), letters("jk")]


def test_a_break_begins_a_new_chunk() -> None:
    found = chunked((Text("ab"), Break(), Text("c")), letters, MARKS)
    assert words_of(found.ids) == [letters("ab"), letters("c")]
    assert found.ids[0] == (BEGIN, *letters("ab"), *[END] * 9)


def test_an_embedding_stays_in_one_piece() -> None:
    flat = (Text("abcdefgh"), Embedding("new", 2.0), Text("i"))
    found = chunked(flat, letters, MARKS, embedding=lambda name: [7, 8, 9])
    assert words_of(found.ids) == [letters("abcdefgh"), [7, 8, 9, ord("i")]]
    assert found.weights[1][1:5] == (2.0, 2.0, 2.0, 1.0)
    assert words_of(chunked(flat, letters, MARKS).ids) == [letters("abcdefghne"), letters("wi")]


def test_what_is_cut_is_reported() -> None:
    def decode(ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    found = chunked((Text("abcdefghijkl mn"),), letters, MARKS, most=1, decode=decode)
    assert len(found.ids) == 1
    assert found.cut == tuple(letters("kl mn"))
    assert found.report == "The prompt is too long: its last 5 tokens are cut off: 'kl mn'."
    assert chunked((Text("abcdefghijk"),), letters, MARKS, most=1).report.endswith("its last 1 tokens are cut off.")
    with pytest.raises(ParameterError, match="at least one token"):
        Marks(BEGIN, END, size=0)


# Both.


class Network:
    """Embeddings that depend on the whole chunk, so that a mask is seen everywhere; counts its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        self.calls.append(tuple(ids.shape))
        seen = ids.double() if mask is None else ids.double() * mask
        own = torch.stack([torch.sin(ids.double() * f) for f in (0.1, 0.2, 0.3)], -1)
        return own + seen.mean(dim=-1)[:, None, None] / 100


FLATS = [
    (Text("abc "), Text("red", 1.5), Text(" fox, jumping")),
    (Text("x"),),
    (Text("a "), Text("b", 0.5), Break(), Text("c", 0.25)),
]


@pytest.mark.parametrize("law", laws.LAWS)
def test_encoding_is_chunks_network_and_law(law: str) -> None:
    network = Network()
    found = encode(FLATS, law, network, letters, MARKS)
    assert found.states.shape == (3, 2 * 12, 3)
    assert found.ids.shape == (3, 2, 12)
    assert len(network.calls) == (2 if law == "compel" else 1)
    empty = Network()(torch.tensor([[BEGIN, *[END] * 11]]), None)[0]
    for row, flat in enumerate(FLATS):
        chunks = chunked(flat, letters, MARKS)
        blank = (BEGIN, *[END] * 11)
        ids = torch.tensor([*chunks.ids, *[blank] * (2 - len(chunks.ids))])
        z = Network()(ids, None)
        w = torch.tensor([*chunks.weights, *[(1.0,) * 12] * (2 - len(chunks.weights))])
        if law == "a1111":
            expected = laws.a1111(z.flatten(0, 1), w.flatten())
        elif law == "comfyui":
            expected = laws.comfyui(z, w, empty).flatten(0, 1)
        else:
            without = []
            for part, node in enumerate(flat):
                if isinstance(node, Text) and node.weight < 1:
                    mask = torch.tensor([[p != part for p in ps] for ps in chunks.parts])
                    without.append((Network()(ids, mask), node.weight))
            expected = laws.compel(z, w, empty, without).flatten(0, 1)
        torch.testing.assert_close(found.states[row], expected)


@pytest.mark.parametrize("law", laws.LAWS)
def test_a_prompt_among_others_is_encoded_as_alone(law: str) -> None:
    together = encode(FLATS, law, Network(), letters, MARKS).states
    for row, flat in enumerate(FLATS):
        alone = encode([flat], law, Network(), letters, MARKS).states[0]
        torch.testing.assert_close(alone, together[row, : len(alone)], rtol=1e-6 if law == "a1111" else 1e-12, atol=0)


def test_encoding_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ParameterError, match="no weight law 'loud'; known: a1111, comfyui, compel"):
        encode(FLATS, "loud", Network(), letters, MARKS)
    with pytest.raises(InvalidRequest, match="no prompt"):
        encode([], "a1111", Network(), letters, MARKS)
