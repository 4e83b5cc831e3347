"""From the files of this package to a `sdkit.Model`."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from attrs import field, frozen
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from sdkit import FileError, Flow, Model, NetworkDenoiser, RectifiedFlow
from sdkit_emoji import readings
from sdkit_emoji.front import PARTS, WEIGHTS, configuration, damaged, read, spec_of, written
from sdkit_emoji.networks import Autoencoder, TextEncoder, TextStates, UNet
from sdkit_emoji.readings import FILLERS, Reading, Readings

__all__ = ["WEIGHTS", "EmojiEncoder", "load"]


@frozen(eq=False)
class EmojiEncoder:
    """Prompts to text states, and hints about prompts that the model was not taught.

    Attributes:
        network: The text encoder.
        tokenizer: Its tokenizer, which pads and cuts to one length.
        concepts: Names of the concepts trained on.
        words: All words of their names and tags.
        styles: Names of the styles trained on.
        vectors: One direction per concept, (number of concepts, d).
        readings: What words that were not taught are read as.
    """

    network: TextEncoder = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    concepts: tuple[str, ...] = field(repr=False)
    words: frozenset[str] = field(repr=False)
    styles: tuple[str, ...]
    vectors: Tensor = field(repr=False)
    readings: Readings = field(factory=Readings, repr=False)

    def __call__(self, prompts: Sequence[str], /) -> TextStates:
        """Prompts, b of them, to text states; what is longer than the tokenizer's length is cut off."""
        encodings = self.tokenizer.encode_batch([self.reading(prompt).text for prompt in prompts])
        shape = (len(encodings), self.network.length)
        device = self.vectors.device
        ids = torch.tensor([one.ids for one in encodings], dtype=torch.long, device=device).reshape(shape)
        mask = torch.tensor([one.attention_mask for one in encodings], dtype=torch.bool, device=device).reshape(shape)
        tokens, pooled = self.network(ids, mask)
        return TextStates(tokens, mask, pooled)

    def reading(self, prompt: str) -> Reading:
        """The prompt in the words that the model was taught; itself where it holds no others."""
        return self.readings.of(prompt, self._knows, lambda word: self.tokenizer.token_to_id(word) is not None)

    def hints(self, prompt: str) -> list[str]:
        """Sentences about what in the prompt the model was not taught; none where it knows every word. Never raises."""
        found: list[str] = []
        text = prompt.lower().replace("’", "'")
        named = re.search(r"([\w-]+(?: [\w-]+)?) style", text)
        for style in sorted(self.styles, key=len, reverse=True):
            text = text.replace(f"{style} style", " ")
        if named and named[0] in text:
            found.append(f"The emoji model knows the styles {written(self.styles)}, not '{named[1]}'.")
            text = text.replace(named[0], " ")
        content = [word for word in re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", text) if word not in FILLERS]
        unknown = [word for word in content if not self._knows(word)]
        read = self.reading(prompt)
        if not unknown and (read.word or read.left_out):
            reads = [f"reads '{read.word}' as '{read.concept}'"] if read.word else []
            reads += [f"reads the prompt as '{read.text}'"] if read.left_out else []
            found.append(f"The emoji model {written(reads)}.")
        if unknown:
            near = self.nearest(" ".join(content))
            words = written([f"'{word}'" for word in dict.fromkeys(unknown)])
            instead = f" and reads '{read.word}' as '{read.concept}'" if read.word else ""
            instead += f"; it reads the prompt as '{read.text}'" if read.left_out else ""
            found.append(
                f"The emoji model was not trained on {words}{instead}; near to this prompt it knows {written(near)}."
            )
        if len(self.tokenizer.encode_batch([prompt])[0].overflowing):
            found.append(f"The emoji model reads {self.network.length - 2} tokens; the rest of the prompt is cut off.")
        return found

    def nearest(self, text: str, count: int = 3) -> list[str]:
        """The concepts whose names mean most nearly the same as ``text``, nearest first."""
        likeness = F.cosine_similarity(self([text]).pooled, self.vectors)
        return [self.concepts[index] for index in likeness.topk(min(count, len(self.concepts))).indices.tolist()]

    def _knows(self, word: str) -> bool:
        singular = [word.removesuffix("s"), word.removesuffix("es")]
        return word.isdigit() or any(one in self.words for one in [word, *singular])


def _fill(network: nn.Module, tensors: dict[str, Tensor], name: str, device: str) -> None:
    """Put weights into a network, as float32, ready for use: in eval mode and without gradients."""
    try:
        network.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)
    except RuntimeError as error:
        raise FileError(f"The emoji model's weights in {name!r} do not fit its config.json: {error}") from error
    network.to(device).eval().requires_grad_(False)


def load(*, device: str = "cpu", folder: str | os.PathLike[str] | None = None) -> Model[TextStates]:
    """The emoji model.

    Args:
        device: Where to put the weights, as torch writes it.
        folder: Other weights than the package's own, as ``training/export.py`` writes them.

    Raises:
        FileError: a file is missing or does not fit.
    """
    source = WEIGHTS if folder is None else Path(folder)
    files = {part: read(source, f"{part}.safetensors") for part in PARTS}
    config = configuration(source)
    try:
        spec = spec_of(config, hashlib.sha256(b"".join(files[part] for part in PARTS)).hexdigest())
        tokenizer = Tokenizer.from_str(read(source, "tokenizer.json").decode())
        tensors = {part: read_tensors(files[part]) for part in PARTS}
        vectors = tensors["text"].pop("concepts").float().to(device)
        # On the meta device nothing is drawn at random for weights that are replaced at once.
        with torch.device("meta"):
            text, denoiser = TextEncoder(**config["text"]), UNet(**config["denoiser"])
            autoencoder = Autoencoder(**config["autoencoder"])
        words = frozenset(config["words"])
        styles = tuple(config["styles"])
        table = Readings()
        if config.get("readings"):
            table = readings.parse(read(source, "readings.json"), spec.knows, str(config.get("style", "")), styles)
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise damaged(source, error) from error
    for part, network in (("text", text), ("denoiser", denoiser), ("autoencoder", autoencoder)):
        _fill(network, tensors[part], part, device)
    tokenizer.enable_truncation(text.length)
    tokenizer.enable_padding(length=text.length)
    schedule = RectifiedFlow()
    # a decoder knows what it reads, so that a pipeline can be composed of the bare parts
    autoencoder.latent = spec.latent
    return Model(
        spec,
        EmojiEncoder(text, tokenizer, spec.knows, words, styles, vectors, table),
        NetworkDenoiser(denoiser, Flow(), schedule, torch.float32),
        autoencoder,
        schedule,
        device,
    )
