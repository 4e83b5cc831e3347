"""Words that were not taught, and what they are read as."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

import sdkit
from sdkit_emoji import readings
from sdkit_emoji.model import WEIGHTS, EmojiEncoder, load
from sdkit_emoji.networks import TextStates
from sdkit_emoji.readings import Reading, Readings

TABLE = Readings(
    ("dog face", "t-rex", "star", "crying face", "snow"),
    {"puppy": "dog face", "dinosaur": "T-Rex", "three": "star", "sad": "crying face", "goodness": "star"},
    {"sad": "crying face"},
    {"celebration": "star"},
    {"falling star": "star", "giant lizard": "T-Rex", "king of lizards": "T-Rex", "kitten star": "crying face"},
    styles=("3d", "noto", "flat fluent", "flat twitter"),
)
STYLED = evolve(TABLE, style="3d")


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
            "dog face on a teal background, flat fluent style",
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
        ("a happy star, zorblax style", "a happy star, zorblax style"),
        ("a fluffy happy star in the snow, plain style", "happy star snow, plain style"),
        ("a fluffy happy zorblax star", "happy zorblax star"),
        ("a happy star, Noto style", "star, Noto style"),
        ("an enormous puppy chasing other puppies", "dog face"),
        ("three kittens", "kittens"),
        ("sad face, noto style", "crying face, noto style"),
        ("a sad puppy", "dog face"),
        ("a dog face and a puppy", "dog face"),
        ("a T-Rex, a puppy", "T-Rex"),
        ("a puppy in the snow", "dog face"),
        ("a photo of snow", "a photo of snow"),
        ("a kitten of puppy", "dog face"),
        ("a photo of two kittens of a puppy, noto style", "dog face, noto style"),
        ("a kitten puppy", "dog face"),
        ("happy kittens of snow", "snow"),
        ("a giant lizard", "a T-Rex"),
        ("an enormous Giant  Lizard in the snowfield, noto style", "T-Rex, noto style"),
        ("giant lizards on a teal background", "T-Rex on a teal background"),
        ("a happy king of lizards", "T-Rex"),
        ("a kitten star", "a crying face"),
        ("a giant lizard star", "star"),
        ("a snow star", "star"),
        ("a star on the snow", "star"),
        ("a star kitten", "star"),
        ("a puppy star", "star"),
        ("a big celebration", "star"),
        ("a celebration in the snow", "snow"),
        ("a happy dinosaur", "T-Rex"),
        ("an iguana, a dinosaur", "an iguana, a dinosaur"),
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


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("a star", "a star, 3d style"),
        ("puppy.", "dog face, 3d style"),
        ("a fluffy star over the sea on a teal background", "star on a teal background, 3d style"),
        ("a star, noto style", "a star, noto style"),
        ("a star in zorblax style", "a star in zorblax style"),
        ("a zorblax star", "a zorblax star"),  # the name that an adapter was taught may be one of a style
        ("", ""),
        ("kitten", "kitten, 3d style"),
        ("a happy kitten", "kitten, 3d style"),
        ("a zorblax kitten", "a zorblax kitten"),
        ("unheard of", "unheard of"),
    ],
)
def test_a_prompt_without_a_style_gets_one_where_it_is_in_taught_words(prompt: str, read: str) -> None:
    found = STYLED.of(prompt, knows, usual)
    assert found.text == read
    assert found.style == ("3d" if "3d" in read else "")
    assert STYLED.of(found.text, knows, usual).text == read


@pytest.mark.parametrize(("word", "article"), [("iguana", "an"), ("dog", "a"), ("Iguana", "an")])
@pytest.mark.parametrize("prompt", ["a puppy", "an puppy", "in my sketch of an  puppy"])
def test_an_article_fits_what_stands_in_its_place(word: str, article: str, prompt: str) -> None:
    read = Readings((word,), {"puppy": word}).of(prompt, lambda _: True).text
    assert read.split()[-2:] == [article, word]


@settings(deadline=None)
@given(st.text(max_size=80))
def test_reading_is_done_once_and_says_what_it_did(prompt: str) -> None:
    found = TABLE.of(prompt, knows, usual)
    assert TABLE.of(found.text, knows, usual).text == found.text
    if not found.word and not found.left_out:
        assert found.text == prompt
    if found.word and not found.left_out:
        before, _, after = found.text.partition(found.concept)
        assert prompt.startswith(re.sub(r"\ban?\s+$", "", before)) and prompt.endswith(after)


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
        left = readings.BEHIND.sub("", found.text).replace(" face", "").split()
        assert left.count("zorblax") == words.count("zorblax")
        rest = [word for word in left if word != "zorblax"]
        assert all(map(knows, rest))
        assert len(rest) == 1 or "zorblax" in left  # what is to be drawn


@pytest.fixture(scope="module")
def model() -> sdkit.Model[TextStates]:
    return load()


def test_the_table_holds_no_concepts_name_and_reads_as_concepts_alone(model: sdkit.Model[TextStates]) -> None:
    encoder = model.encoder
    assert isinstance(encoder, EmojiEncoder)
    table = encoder.readings
    assert len(table.nouns) > 20_000 and len(table.faces) > 5_000
    assert {*table.nouns.values(), *table.faces.values(), *table.phrases.values()} <= set(encoder.concepts)
    assert all("face" in concept for concept in table.faces.values())
    names = {concept.lower() for concept in encoder.concepts}
    assert not {*table.nouns, *table.faces, *table.tags, *table.phrases} & names
    assert all(2 <= len(name.split()) <= 4 for name in table.phrases)
    assert table.style in encoder.styles
    assert table.tags.keys() <= encoder.words and not table.tags.keys() & table.nouns.keys()
    for word in (
        "girl",
        "poet",
        "boy",
        "african",
        "teacher",
        "man",
        "baby",
        "mexican",
    ):  # the nearest concepts would be insults
        assert word not in table.nouns and word not in table.faces
    read = {word: table.nouns[word] for word in ("car", "coffee", "burger", "ship", "wizard")}
    assert read["car"] == "automobile" and read["coffee"] == "hot beverage" and read["ship"] == "sailboat"


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
    assert encoder.hints("a car") == ["The emoji model reads 'car' as 'automobile'."]
    assert encoder.hints("a fire truck") == ["The emoji model reads 'fire truck' as 'fire engine'."]
    (hint,) = encoder.hints("a cup of coffee")
    assert hint == "The emoji model reads 'coffee' as 'hot beverage' and reads the prompt as 'hot beverage, 3d style'."
    assert encoder.hints("an angry cat") == ["The emoji model reads the prompt as 'cat, 3d style'."]
    assert encoder.reading("a diamond ring").text == "ring, 3d style"  # no verb
    assert encoder.reading("a robot dog").text == "dog, 3d style"
    (hint,) = encoder.hints("a cute fox sleeping under a tree, 3d style")
    assert "reads the prompt as 'fox, 3d style'" in hint


def test_prompts_in_taught_words_are_encoded_as_they_are(model: sdkit.Model[TextStates]) -> None:
    encoder = model.encoder
    assert isinstance(encoder, EmojiEncoder)
    for concept in encoder.concepts:
        for prompt in (
            f"{concept}, 3d style",
            f"a {concept.lower()} on a sky blue background, flat fluent style",
        ):
            assert encoder.reading(prompt).text == prompt
        assert encoder.reading(concept).text == f"{concept}, 3d style"


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    for path in WEIGHTS.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for content in (b"{}", b"[]", b"no JSON", b'{"nouns": {"dog": 3}, "faces": {}, "tags": {}, "phrases": {}}'):
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
