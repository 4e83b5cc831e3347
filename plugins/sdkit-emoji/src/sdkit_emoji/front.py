"""What is registered as the model `emoji`: loads it, and says what it is without loading it. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit import FileError, LatentSpec, Licence, Model, ModelSpec

if TYPE_CHECKING:
    from sdkit_emoji.networks import TextStates

__all__ = ["PARTS", "WEIGHTS", "Emoji", "configuration", "damaged", "emoji", "read", "spec_of", "written"]

WEIGHTS = Path(__file__).resolve().parent / "weights"
PARTS = ("text", "denoiser", "autoencoder")
LICENCE = Licence(
    id="CC-BY-4.0 AND Apache-2.0 AND MIT",
    name="Terms of the drawings and the language model that the weights were learned from",
    summary="Free to use, also commercially, if the makers of the drawings are named.",
    url="https://creativecommons.org/licenses/by/4.0/",
    duties=("Name the sources below where you pass on pictures or weights, and say that they were changed.",),
    attribution=(
        "Twemoji, copyright Twitter, Inc and other contributors, CC-BY-4.0, https://github.com/jdecked/twemoji",
        "Noto Emoji, copyright Google LLC, Apache-2.0, https://github.com/googlefonts/noto-emoji",
        "Fluent Emoji, copyright Microsoft Corporation, MIT, https://github.com/microsoft/fluentui-emoji",
        "all-MiniLM-L6-v2 (the text encoder is distilled from it), Apache-2.0, "
        "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
        "WordNet 3.1 (which words are near to which), copyright Princeton University, WordNet licence, "
        "https://wordnet.princeton.edu/license-and-commercial-use",
        "emojibase-data (names and tags), copyright Miles Johnson, MIT, https://github.com/milesj/emojibase",
    ),
)


class Emoji:
    """The emoji model as it is registered: called, it loads the model; `spec` says what it is without that."""

    def __call__(self, *, device: str = "cpu", folder: str | os.PathLike[str] | None = None) -> Model[TextStates]:
        """The model, see `sdkit_emoji.model.load`."""
        from sdkit_emoji.model import load

        return load(device=device, folder=folder)

    def spec(self) -> ModelSpec:
        """The facts about the package's own weights: those of the loaded model, only that no weight is parsed.

        Raises:
            FileError: a file is missing or does not fit.
        """
        config, hashed = configuration(WEIGHTS), hashlib.sha256()
        for part in PARTS:
            hashed.update(read(WEIGHTS, f"{part}.safetensors"))
        try:
            return spec_of(config, hashed.hexdigest())
        except (KeyError, TypeError) as error:
            raise damaged(WEIGHTS, error) from error


emoji = Emoji()


def configuration(folder: Path) -> Mapping[str, Any]:
    """What the folder's ``config.json`` says.

    Raises:
        FileError: it cannot be read.
    """
    try:
        config: Mapping[str, Any] = json.loads(read(folder, "config.json"))
    except ValueError as error:
        raise damaged(folder, error) from error
    return config


def spec_of(config: Mapping[str, Any], sha256: str) -> ModelSpec:
    """The facts about a model of a configuration.

    Args:
        config: What ``config.json`` says.
        sha256: Hash of the weights.

    Raises:
        KeyError, TypeError: something is missing in it.
    """
    concepts, styles = tuple(config["concepts"]), tuple(config["styles"])
    return ModelSpec(
        name="emoji",
        family="emoji",
        latent=LatentSpec(channels=config["denoiser"]["channels"], factor=8, size=(128, 128), multiple=32),
        licence=LICENCE,
        summary=f"Emoji-like pictures of {len(concepts)} concepts in the styles {written(styles)}",
        prediction="flow",
        scheduler="euler",
        spacing="trailing",
        steps=50,
        guidance=config["guidance"],
        sha256=sha256,
        knows=concepts,
    )


def read(folder: Path, name: str) -> bytes:
    """A file of the model.

    Raises:
        FileError: it cannot be read.
    """
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise FileError(
            f"The emoji model's file {name!r} cannot be read ({error.strerror}); install the package again."
        ) from error


def damaged(folder: Path, error: Exception) -> FileError:
    """What to say of files that do not hold what they should."""
    return FileError(f"The emoji model in {folder.name!r} is damaged or of another version: {error}")


def written(words: Sequence[str]) -> str:
    """A list as people write it."""
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)
