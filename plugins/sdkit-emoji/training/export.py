"""Write what the package loads: three safetensors files in half precision, the tokenizer, and config.json."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from captions import COLOURS, STYLES, clean, told
from common import load_pictures, weights
from dictionary import read, readings
from safetensors.torch import save_file
from torch import Tensor
from train_denoiser import Texts, read_concepts


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float16 on the CPU, contiguous.

    Raises:
        ValueError: a value does not fit float16.
    """
    out = {name: value.detach().cpu().half().contiguous() for name, value in tensors.items()}
    wrong = [name for name, value in out.items() if not value.isfinite().all()]
    if wrong:
        raise ValueError(f"not finite in float16: {wrong}")
    return out


def said_of(entries: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Of single words that are a tag or the last word of a name, the names that they were said of."""
    found: dict[str, set[str]] = {}
    for one in entries:
        name = clean(one["label"])
        for word in {*told(one), name.split()[-1]}:
            if " " not in word:
                found.setdefault(word, set()).add(name)
    return found


def write_readings(out: Path, words: Path, entries: list[dict[str, Any]], taught: frozenset[str]) -> None:
    """Write ``readings.json``: by concept, the words that are read as it."""
    concepts = list(dict.fromkeys(one["label"] for one in entries))
    table = readings(read(words), [clean(name) for name in concepts], taught, said_of(entries))
    lines = {
        kind: {name: sorted(found[clean(name)]) for name in concepts if clean(name) in found}
        for kind, found in table.items()
    }
    (out / "readings.json").write_text(json.dumps(lines, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of prepare.py")
    parser.add_argument("--autoencoder", type=Path, required=True, help="folder of train_autoencoder.py")
    parser.add_argument("--text", type=Path, required=True, help="folder of train_text.py")
    parser.add_argument("--denoiser", type=Path, required=True, help="folder of train_denoiser.py")
    parser.add_argument("--concepts", type=Path, help="the list the denoiser was trained on")
    parser.add_argument(
        "--words", type=Path, help="words.safetensors of dictionary.py: how words that were not taught are read"
    )
    parser.add_argument("--guidance", type=float, default=2.0, help="recommended guidance scale")
    parser.add_argument("--style", choices=STYLES, default="3d", help="style of prompts that name none, with --words")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "src/sdkit_emoji/weights")
    arguments = parser.parse_args()

    _, captions = load_pictures(arguments.data)
    concepts = list(read_concepts(arguments.concepts, {one["label"] for one in captions}))
    of_concepts = [one for one in captions if one["label"] in set(concepts)]
    words = {
        word
        for one in of_concepts
        for text in (one["label"], *told(one), *COLOURS, "background")  # what captions are made of, but for styles
        for word in re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", clean(text))
    }
    texts = Texts(arguments.text, torch.device("cpu"))
    text = weights(arguments.text, "text", torch.device("cpu"))
    autoencoder = weights(arguments.autoencoder, "autoencoder", torch.device("cpu"))
    denoiser = weights(arguments.denoiser, "denoiser", torch.device("cpu"))
    vectors = texts([clean(name) for name in concepts]).pooled
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file(half({**text["average"], "concepts": vectors}), arguments.out / "text.safetensors")
    save_file(half(autoencoder["average"]), arguments.out / "autoencoder.safetensors")
    save_file(half(denoiser["average"]), arguments.out / "denoiser.safetensors")
    shutil.copyfile(arguments.text / "tokenizer.json", arguments.out / "tokenizer.json")
    config = {
        "autoencoder": autoencoder["config"],
        "text": text["config"],
        "denoiser": denoiser["config"],
        "guidance": arguments.guidance,
        "styles": [style for style in STYLES if any(one["style"] == style for one in of_concepts)],
        "concepts": concepts,
        "words": sorted(words),
        "readings": arguments.words is not None,
        "style": arguments.style,
    }
    if arguments.words:
        write_readings(arguments.out, arguments.words, of_concepts, frozenset(words))
    (arguments.out / "config.json").write_text(
        json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    for path in arguments.out.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone
    sizes = {path.name: path.stat().st_size for path in sorted(arguments.out.iterdir())}
    print(sizes, f"together {sum(sizes.values()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
