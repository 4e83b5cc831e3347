"""Words that were not taught, and what they are read as."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdkit
from sdkit_emoji import readings
from sdkit_emoji.model import WEIGHTS, EmojiEncoder, load
from sdkit_emoji.networks import TextStates
from sdkit_emoji.readings import FILLERS, Reading, Readings

TABLE = Readings(
    ("dog face", "t-rex", "star", "crying face", "snow"),
    {"puppy": "dog face", "dinosaur": "T-Rex", "three": "star", "sad": "crying face", "goodness": "star"},
    {"sad": "crying face"},
)


def knows(word: str) -> bool:
    return word in {"kitten", "kittens", "face", "happy", "teal", "background", "star", "dog", "crying", "snow"}


def usual(word: str) -> bool:
    return word not in ("zorblax", "puppy")


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("puppy, 3d style", "dog face, 3d style"),
        (
            "a happy Puppy on a teal background, flat fluent style",
            "a happy dog face on a teal background, flat fluent style",
        ),
        ("puppies", "puppies"),
        ("two puppys", "dog face"),
        ("flat twitter style, a puppy", "flat twitter style, a dog face"),
        ("golden retriever puppy", "dog face"),
        ("a puppy in the snowfield", "dog face"),
        ("a cute little puppy in the snowfield, 3d style", "dog face, 3d style"),
        ("a fluffy star over the sea on a teal background, noto style", "star on a teal background, noto style"),
        ("fluffy stars", "stars"),
        ("a kitten sleeping on a chair, flat fluent style", "kitten, flat fluent style"),
        ("a fluffy zorblax star", "zorblax star"),
        ("a zorblax star", "a zorblax star"),
        ("a fluffy star, zorblax style", "star, zorblax style"),
        ("an enormous puppy chasing other puppies", "dog face"),
        ("three kittens", "kittens"),
        ("sad face, noto style", "crying face, noto style"),
        ("a sad puppy", "dog face"),
        ("a dog face and a puppy", "dog face"),
        ("a T-Rex, a puppy", "T-Rex"),
        ("", ""),
        ("3d style", "3d style"),
        ("face", "face"),
        ("unheard of", "unheard of"),
    ],
)
def test_what_a_prompt_is_read_as(prompt: str, read: str) -> None:
    assert TABLE.of(prompt, knows, usual).text == read


def test_a_reading_names_the_word_and_what_stands_for_it() -> None:
    assert TABLE.of("a sad face", knows) == Reading("a crying face", "sad", "crying face")
    assert TABLE.of("a star at sea", knows) == Reading("star", left_out=("at", "sea"))
    assert TABLE.of("a kitten", knows) == Reading("a kitten")


def test_what_was_taught_is_never_replaced() -> None:
    assert TABLE.of("puppy", lambda word: True).text == "puppy"


@settings(deadline=None)
@given(st.text(max_size=80))
def test_reading_is_done_once_and_says_what_it_did(prompt: str) -> None:
    found = TABLE.of(prompt, knows, usual)
    assert TABLE.of(found.text, knows, usual).text == found.text
    if not found.word and not found.left_out:
        assert found.text == prompt
    if found.word and not found.left_out:
        before, _, after = found.text.partition(found.concept)
        assert prompt.startswith(before) and prompt.endswith(after)


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "a",
                "the",
                "fluffy",
                "star",
                "puppy",
                "kitten",
                "face",
                "happy",
                "on",
                "teal",
                "background",
                "sea",
                "zorblax",
            ]
        ),
        max_size=9,
    )
)
def test_what_is_left_is_made_of_taught_words_and_names(words: list[str]) -> None:
    found = TABLE.of(" ".join(words), knows, usual)
    if found.left_out:
        left = set(found.text.split())
        assert not left & set(found.left_out) or found.concept
        assert all(knows(word) or word in FILLERS or word == "zorblax" for word in left)
        assert {"zorblax"} & set(words) <= left


@pytest.fixture(scope="module")
def model() -> sdkit.Model[TextStates]:
    return load()


def test_the_table_holds_no_taught_word_and_only_concepts(model: sdkit.Model[TextStates]) -> None:
    encoder = model.encoder
    assert isinstance(encoder, EmojiEncoder)
    table = encoder.readings
    assert len(table.nouns) > 20_000 and len(table.faces) > 5_000
    assert {*table.nouns.values(), *table.faces.values()} <= set(encoder.concepts)
    assert all("face" in concept for concept in table.faces.values())
    assert not ({*table.nouns, *table.faces} & encoder.words)


def test_a_word_is_drawn_as_what_it_is_read_as(model: sdkit.Model[TextStates]) -> None:
    encoder = model.encoder
    assert isinstance(encoder, EmojiEncoder)
    read = encoder.reading("a puppy, 3d style")
    assert read.word == "puppy" and read.concept in ("dog", "dog face")
    one, other = encoder(["a puppy, 3d style"]), encoder([read.text])
    assert torch.equal(one.tokens, other.tokens) and torch.equal(one.pooled, other.pooled)
    for concept in encoder.concepts:
        assert encoder.reading(f"{concept}, 3d style").word == "", concept
    (hint,) = encoder.hints("puppy, 3d style")
    assert f"reads 'puppy' as '{read.concept}'" in hint
    (hint,) = encoder.hints("a cute fox sleeping under a tree, 3d style")
    assert "reads the prompt as 'fox, 3d style'" in hint


def test_prompts_in_taught_words_are_encoded_as_they_are(model: sdkit.Model[TextStates]) -> None:
    encoder = model.encoder
    assert isinstance(encoder, EmojiEncoder)
    for concept in encoder.concepts:
        for prompt in (
            f"{concept}, 3d style",
            f"a {concept.lower()} on a sky blue background, flat fluent style",
            concept,
        ):
            assert encoder.reading(prompt).text == prompt


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    for path in WEIGHTS.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for content in (b"{}", b"[]", b"no JSON", b'{"nouns": {"dog": 3}, "faces": {}}'):
        (tmp_path / "readings.json").write_bytes(content)
        with pytest.raises(sdkit.FileError, match="damaged or of another version"):
            load(folder=tmp_path)
    (tmp_path / "readings.json").unlink()
    with pytest.raises(sdkit.FileError, match="readings.json"):
        load(folder=tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"readings": False}), encoding="utf-8")
    encoder = load(folder=tmp_path).encoder
    assert isinstance(encoder, EmojiEncoder) and encoder.reading("puppy").text == "puppy"


def test_no_table_reads_nothing() -> None:
    assert readings.Readings().of("a puppy", knows).text == "a puppy"
