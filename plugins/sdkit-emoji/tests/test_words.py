"""Words beside the names: the dictionary that training reads, and captions in other words."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sdkit_training

DATA = """\
  1 A licence stands at the head of these files, on lines that begin with two spaces.
00000010 05 n 02 dog 0 domestic_dog 0 002 @ 00000030 n 0000 ~ 00000020 n 0000 | a tame canine; "the dog barked"
00000020 05 n 02 puppy 0 Whelp 0 001 @ 00000010 n 0000 | a young dog
00000030 05 n 01 canine 0 000 | a mammal that barks
00000040 04 n 01 puppy 1 000 | an inexperienced person
00000050 04 n 01 walk 0 000 | going on foot
00000060 06 n 0b {many} 000 | things of many names
"""
INDEX = """\
  1 A licence again.
dog n 1 1 @ 1 1 00000010
domestic_dog n 1 1 @ 1 0 00000010
puppy n 2 1 @ 2 1 00000040 00000020
canine n 1 0 1 0 00000030
walk n 1 0 1 0 00000050
thing n 1 0 1 0 00000060
"""


@pytest.fixture(scope="module")
def tools(programs: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    return programs("captions", "common", "dictionary", "pace", "train_text")


def wordnet(folder: Path, data: str, index: str) -> Path:
    """A folder with WordNet's files of these contents."""
    (folder / "data.noun").write_text(data, encoding="utf-8")
    (folder / "index.noun").write_text(index, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    many = " ".join(f"thing_{letter} 0" for letter in "abcdefghijk")
    return wordnet(tmp_path, DATA.replace("{many}", many), INDEX)


def test_the_dictionary_reads_synonyms_definitions_and_what_a_thing_is_a_kind_of(
    tools: SimpleNamespace, folder: Path
) -> None:
    dictionary = tools.dictionary.Dictionary(folder)
    (dog,) = dictionary.senses("dog")
    assert dog.lemmas == ("dog", "domestic dog") and dog.definition == "a tame canine" and dog.hypernyms == ("canine",)
    first, second = dictionary.senses("puppy")
    assert first.definition == "an inexperienced person" and second.lemmas == ("puppy", "whelp")
    assert dictionary.senses("dogs") == [dog] and dictionary.senses("domestic dog") == [dog]
    assert dictionary.senses("unheard") == []
    assert len(dictionary.senses("thing")[0].lemmas) == 11  # how many words a sense has is written in hexadecimal


def test_words_that_can_be_drawn_are_single_and_have_a_sense_of_a_thing(tools: SimpleNamespace, folder: Path) -> None:
    assert tools.dictionary.Dictionary(folder).drawable() == ["canine", "dog", "puppy", "thing"]


class Letters:
    """In place of the language model: counts of letters, so that all can be worked out by hand."""

    def embed(self, texts: list[str]) -> Tensor:
        counts = [Counter(text) for text in texts]
        rows = [[float(one[letter]) for letter in "abcdefghijklmnopqrstuvwxyz"] for one in counts]
        return F.normalize(torch.tensor(rows), dim=-1)


def test_a_word_moves_toward_what_is_said_of_it_and_one_without_an_entry_stays(
    tools: SimpleNamespace, folder: Path
) -> None:
    module, teacher = tools.dictionary, Letters()
    dictionary = module.Dictionary(folder)
    found = module.enriched(teacher, dictionary, ["dog", "unheard"], [["pet"], []])
    own, synonym, definition, hypernym, tag, other = teacher.embed(
        ["dog", "domestic dog", "a tame canine", "canine", "pet", "unheard"]
    )
    moved = own + 0.5 * synonym + 0.5 * definition + 0.3 * hypernym + 0.5 * tag
    assert torch.allclose(found[0], F.normalize(moved, dim=-1), atol=1e-6)
    assert torch.allclose(found[1], other, atol=1e-6)
    assert found[0] @ hypernym > own @ hypernym and found[0] @ tag > own @ tag


def test_near_words_are_those_of_the_nearest_name_and_never_kept_out(tools: SimpleNamespace) -> None:
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    words = ["fox", "vixen", "puppy", "whale", "south"]
    vectors = F.normalize(torch.stack([east, east + 0.1 * north, east, north + 0.2 * east, -north]), dim=-1)
    known = tools.dictionary.Known(words, vectors, 5, ["fox", "dolphin"], torch.stack([east, north]))
    found = tools.dictionary.near(known, ["fox", "dolphin"])
    assert [word for word, _ in found["fox"]] == ["vixen"]  # not the name itself, not "puppy"
    assert [word for word, _ in found["dolphin"]] == ["whale"]  # nothing is near to "south"
    assert found["fox"][0][1] == pytest.approx(1 / (1 + np.exp((0.1 - 1) / 1.01**0.5 / 0.05)), rel=1e-4)
    assert "puppy" in tools.captions.HELD_OUT


@pytest.mark.parametrize("colour", [None, "teal"])
def test_captions_use_other_words_as_often_as_stated_and_as_likely_as_they_mean_it(
    tools: SimpleNamespace, colour: str | None
) -> None:
    random = np.random.default_rng(0)
    entry = {"label": "castle", "tags": [], "style": "noto"}
    others = [("palace", 0.9), ("minaret", 0.3)]
    told = [tools.captions.caption(entry, random, colour, others) for _ in range(3000)]
    counts = {word: sum(word in text for text in told) for word in ("castle", "palace", "minaret")}
    assert sum(counts.values()) == 3000
    assert counts["palace"] + counts["minaret"] == pytest.approx(3000 * tools.captions.OTHERS, rel=0.1)
    assert counts["palace"] == pytest.approx(3 * counts["minaret"], rel=0.25)
    assert all("teal background" in text for text in told) == (colour is not None)
    assert any(text.startswith("a palace") for text in told)


def test_the_table_of_words_is_read_as_it_was_written(tools: SimpleNamespace, tmp_path: Path) -> None:
    vectors, names = torch.arange(12.0).reshape(3, 4), torch.eye(4)[:2]
    others = {"fox": ["true fox"], "dolphin": []}
    known = tools.dictionary.Known(["fox", "vixen", "run"], vectors, 2, ["fox", "dolphin"], names, others=others)
    tools.dictionary.write(tmp_path / "words.safetensors", known)
    found = tools.dictionary.read(tmp_path / "words.safetensors")
    assert (found.words, found.drawable, found.names, found.others) == (known.words, 2, known.names, others)
    assert torch.equal(found.vectors, vectors) and torch.equal(found.name_vectors, names)


def test_a_training_is_followed_to_its_end_and_goes_on_after_a_stop(
    tools: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = sdkit_training.Plan(steps=9, learning_rate=0.1, average=0.9)
    stops = iter([False] * 3 + [True])

    def training() -> sdkit_training.Training:
        value = torch.ones(3, requires_grad=True)
        return sdkit_training.Training({"value": value}, lambda step, rows: value.square().sum(), plan)

    def follow(one: sdkit_training.Training) -> list[int]:
        kept: list[int] = []

        def keep(loss: float) -> str:
            kept.append(one.step)
            one.save(tmp_path / "checkpoint.safetensors")
            return f"{loss:.3f}"

        tools.pace.follow(one, keep, minutes=60)
        return kept

    straight = training()
    assert follow(straight) == [9]
    monkeypatch.setattr(tools.pace, "asked_to_stop", lambda: lambda: next(stops))
    stopped = training()
    assert follow(stopped) == [4]
    monkeypatch.setattr(tools.pace, "asked_to_stop", lambda: lambda: False)
    resumed = training()
    resumed.restore(tmp_path / "checkpoint.safetensors")
    assert follow(resumed) == [9]
    assert torch.equal(resumed.weights["value"], straight.weights["value"])


def test_weights_of_a_training_are_read_as_they_were_written(tools: SimpleNamespace, tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(4)}
    tools.common.write_weights(tmp_path, "text", {"width": 3}, tensors, {"step": 7})
    found = tools.common.weights(tmp_path, "text", torch.device("cpu"))
    assert found["config"] == {"width": 3}
    assert all(torch.equal(found["average"][name], value) for name, value in tensors.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "text.safetensors"]


def test_a_rotation_is_found_again(tools: SimpleNamespace) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(200, 6, generator=generator)
    basis = torch.linalg.qr(torch.randn(6, 4, generator=generator))[0]
    found = tools.train_text.rotation(wide, wide @ basis)
    assert torch.allclose(found.T @ found, torch.eye(4), atol=1e-5)
    assert (wide @ found - wide @ basis).abs().max() < 0.2 * (wide @ basis).abs().max()


def test_measuring_the_pace_changes_no_parameter_and_a_resumed_run_takes_the_same_steps(
    tools: SimpleNamespace, tmp_path: Path
) -> None:
    value = torch.ones(3, requires_grad=True)
    plan = sdkit_training.Plan(steps=10**6, learning_rate=0.1)

    def objective(step: int, rows: range) -> Tensor:
        return value.square().sum()

    def paced(minutes: float | None, resume: bool) -> int:
        arguments = Namespace(out=tmp_path, minutes=minutes, resume=resume)
        found: int = tools.pace.paced(objective, {"value": value}, plan, arguments, trial=12).steps
        return found

    steps = paced(0.02, False)
    assert 1 <= steps < plan.steps and torch.equal(value, torch.ones(3))
    assert paced(5.0, True) == steps
    assert paced(None, False) == plan.steps


def test_words_for_people_are_told_from_ghosts_dogs_and_things(tools: SimpleNamespace, tmp_path: Path) -> None:
    data = """\
00000010 03 n 01 person 0 000 | a human being
00000020 18 n 01 poet 0 001 @ 00000010 n 0000 | a writer of poems
00000030 18 n 01 homer 0 001 @i 00000020 n 0000 | a Greek poet
00000040 18 n 01 ghost 0 000 | a spirit
00000050 05 n 01 pup 0 000 | a young dog
00000060 18 n 01 pup 0 001 @ 00000010 n 0000 | a youngster
00000070 10 n 01 latin 0 000 | a language
00000080 18 n 01 latin 0 001 @ 00000010 n 0000 | an inhabitant of Latium
00000090 18 n 02 inhabitant 0 dweller 0 001 @ 00000010 n 0000 | a person who inhabits a place
00000100 18 n 01 native 0 001 @ 00000090 n 0000 | one who was born there
"""
    index = """\
poet n 1 0 1 0 00000020
homer n 1 0 1 0 00000030
ghost n 1 0 1 0 00000040
pup n 2 0 2 0 00000050 00000060
latin n 2 0 2 0 00000070 00000080
native n 1 0 1 0 00000100
tenant n 2 0 2 0 00000020 00000100
"""
    dictionary = tools.dictionary.Dictionary(wordnet(tmp_path, data, index))
    words = ["poet", "poets", "homer", "ghost", "pup", "latin", "unheard"]
    assert dictionary.people(words) == {"poet", "poets", "homer", "latin"}
    assert dictionary.animals(words) == {"pup"}
    assert dictionary.folk(["poet", "native", "natives", "tenant", "pup", "unheard"]) == {"native", "natives"}


def test_other_names_are_those_that_mean_the_same_before_all_else(tools: SimpleNamespace, tmp_path: Path) -> None:
    data = """\
00000010 06 n 04 fire_engine 0 fire_truck 0 engine 0 hot_wheels 0 000 | a lorry with a ladder
00000020 04 n 01 hot_wheels 0 000 | a game
00000030 18 n 02 taco 0 rude_name 0 000 | a person
00000040 04 n 02 tennis 0 lawn_tennis 0 000 | a game that cannot be seen
"""
    index = """\
fire_engine n 1 0 1 0 00000010
fire_truck n 1 0 1 0 00000010
engine n 1 0 1 0 00000010
hot_wheels n 2 0 2 0 00000020 00000010
taco n 1 0 1 0 00000030
rude_name n 1 0 1 0 00000030
tennis n 1 0 1 0 00000040
lawn_tennis n 1 0 1 0 00000040
"""
    dictionary = tools.dictionary.Dictionary(wordnet(tmp_path, data, index))
    assert dictionary.other_names("fire engine") == ["fire truck"]
    assert [dictionary.other_names(name) for name in ("taco", "tennis", "unheard of")] == [[], [], []]


def test_what_words_are_read_as_and_which_are_not(tools: SimpleNamespace) -> None:
    concepts = ["sailboat", "anchor", "cat face", "crying face"]
    sail, anchor, cat, crying = torch.eye(5)[:4]
    far = torch.eye(5)[4]
    rows = {
        "yacht": sail + 0.3 * anchor,  # a noun: the nearest
        "ship": sail + 0.7 * anchor,  # said of the anchor, but much nearer to the other
        "harbour": sail + 0.9 * anchor,  # said of the anchor, and about as near
        "girl": cat,  # for people: nothing
        "kitty": cat + crying,  # an animal: before "face" only an animal's
        "sailboat": sail,  # a concept itself
        "dust": far + 0.1 * sail,  # near to nothing
        "sobbing": crying,  # no noun
        "weep": crying + 0.5 * far,  # no noun, said of the crying face
        "teal": sail,  # in captions, but said of nothing
        "mermaid": anchor,  # said of the anchor, but it says who somebody is
    }
    known = tools.dictionary.Known(
        list(rows),
        F.normalize(torch.stack(list(rows.values())), dim=-1),
        7,
        concepts,
        torch.eye(5)[:4],
        frozenset({"girl"}),
        frozenset({"kitty", "cat"}),
        frozenset({"mermaid"}),
        {"anchor": ("ground tackle", "cat face"), "trunk": ("tree bole",)},
    )
    taught = frozenset({"ship", "harbour", "weep", "teal", "mermaid", "ahoy", "yo", "sea"})
    carriers = {"ship": {"anchor"}, "harbour": {"anchor"}, "weep": {"crying face"}, "mermaid": {"anchor"}}
    # no list has these, so of one concept alone
    carriers |= {"ahoy": {"sailboat"}, "yo": {"sailboat"}, "sea": {"sailboat", "anchor"}}
    found = tools.dictionary.readings(known, concepts, taught, carriers)
    assert {name: set(words) for name, words in found["nouns"].items()} == {
        "sailboat": {"yacht", "ship"},
        "anchor": {"harbour"},
        "cat face": {"kitty"},
    }
    assert found["tags"] == {"crying face": ["weep"], "sailboat": ["ahoy"]}
    assert found["phrases"] == {"anchor": ["ground tackle"]}
    assert {name: set(words) for name, words in found["faces"].items()} == {
        "cat face": {"kitty"},
        "crying face": {"sobbing", "weep"},
    }
