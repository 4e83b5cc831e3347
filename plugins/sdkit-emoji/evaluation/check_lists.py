"""Check what the lists claim against the captions that training writes: ``python check_lists.py --data data/pictures``.

No word of a synonym prompt may stand in a caption of any picture; the labels that are right answers, and those of the
other lists, must be concepts of the training. Captions are drawn by ``training/captions.py`` itself, many times over,
with and without a background, and every tag that a caption can carry is looked at besides.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lists import COLOURS, STYLES, backgrounds, concepts, longer, new_words, short, synonyms, words

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

import captions as writing


def written(entries: Sequence[dict[str, Any]], rounds: int, seed: int = 0) -> Iterable[str]:
    """``rounds`` captions of every entry on white, and as many on a background."""
    random = np.random.default_rng(seed)
    for entry in entries:
        for _ in range(rounds):
            yield writing.caption(entry, random)
            yield writing.caption(entry, random, str(random.choice(list(COLOURS))))


def spoiled(entries: Sequence[dict[str, Any]], rounds: int) -> Counter[str]:
    """How often each word of the synonym prompts was written in a caption; empty where the claim holds."""
    new = new_words()
    return Counter(word for text in written(entries, rounds) for word in words(text) & new)


def wrong_lists(labels: set[str]) -> list[str]:
    """Sentences about the lists' own faults, given the labels that the judge knows; none where they are well made."""
    found = []
    taught, other, among, composed, plain = concepts(), synonyms(), longer(), backgrounds(), short()
    for name, prompts, count in (
        ("concepts", taught, 500),
        ("synonyms", other, 100),
        ("longer", among, 64),
        ("backgrounds", composed, 64),
        ("short", plain, 64),
    ):
        if len(prompts) != count:
            found.append(f"{name}.txt has {len(prompts)} prompts, not {count}.")
        if len({prompt.text for prompt in prompts}) != len(prompts):
            found.append(f"{name}.txt has a prompt twice.")
        styles = Counter(prompt.style for prompt in prompts)
        if len(set(styles.values())) != 1 or set(styles) != ({""} if name == "short" else set(STYLES)):
            found.append(f"{name}.txt asks for styles unequally often: {dict(styles)}.")
        unknown = sorted({label for prompt in prompts for label in prompt.labels} - labels)
        if unknown:
            found.append(f"{name}.txt names concepts that the judge does not know: {', '.join(unknown)}.")
    each = Counter(prompt.labels[0] for prompt in taught)
    if len(each) != 250 or set(each.values()) != {2}:
        found.append("concepts.txt does not ask for 250 concepts twice each.")
    outside = sorted({label for prompt in (*other, *among, *composed, *plain) for label in prompt.labels} - set(each))
    if outside:
        found.append(f"Right answers that are no label of concepts.txt: {', '.join(outside)}.")
    found += [f"{prompt.text!r} names no known colour." for prompt in composed if prompt.colour not in COLOURS]
    found += [
        f"{prompt.text!r} repeats a word of its answer."
        for prompt in other
        if (words(prompt.text.removesuffix(f", {prompt.style} style")) & new_words())
        & {word for label in prompt.labels for word in words(label)}
    ]
    return found


def main() -> None:
    """Command line; ends with an error where a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of training/prepare.py")
    parser.add_argument("--rounds", type=int, default=100, help="captions of every picture")
    arguments = parser.parse_args()
    entries = json.loads((arguments.data / "captions.json").read_text(encoding="utf-8"))
    faults = wrong_lists({one["label"] for one in entries})
    counted = spoiled(entries, arguments.rounds)
    faults += [f"'{word}' stands in {count} of the captions written." for word, count in counted.most_common()]
    if faults:
        raise SystemExit("\n".join(faults))
    print(f"The lists are well made, and {len(new_words())} words stand in no caption of {len(entries)} pictures.")


if __name__ == "__main__":
    main()
