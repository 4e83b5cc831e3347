"""From text to token numbers: CLIP's byte pairs, and whatever ``tokenizer.json`` a folder brings."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor

from sdkit import FileError

__all__ = ["T5_LENGTH", "TextTokenizer", "clip_tokenizer", "read_tokenizer"]

PLAIN = 188
"""Printable bytes, which stand for themselves."""
START, END = "<|startoftext|>", "<|endoftext|>"
T5_LENGTH = 256
"""Tokens of a prompt that T5 reads; it has no positions that would limit them, and Stable Diffusion 3 learned with 77
to 256, FLUX.1 with 256 (schnell) and 512 (dev)."""
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@frozen(eq=False)
class TextTokenizer:
    """Prompts to rows of token numbers of one length.

    Attributes:
        backend: Splits text; neither pads nor cuts.
        length: Tokens of a row, the marks of start and end among them.
        start: Number of the mark in front of a prompt, or None if there is none.
        end: Number of the mark behind it.
        pad: Number that fills the rest of a row.
    """

    backend: Tokenizer = field(repr=False)
    length: int
    start: int | None
    end: int
    pad: int

    @property
    def room(self) -> int:
        """How many tokens of text a row holds."""
        return self.length - (1 if self.start is None else 2)

    def tokens(self, text: str) -> list[int]:
        """The token numbers of a text, without marks, of any length."""
        numbers: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return numbers

    def cut(self, text: str) -> str:
        """The end of the text that does not fit into a row; empty if all of it does."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return text[encoding.offsets[self.room][0] :] if len(encoding.ids) > self.room else ""

    def words(self, numbers: Sequence[int]) -> str:
        """The text that token numbers stand for, as far as they are in the vocabulary."""
        known = [number for number in numbers if number < self.backend.get_vocab_size()]
        if self.start is None:  # T5's tokenizers have their own way back
            made: str = self.backend.decode(known)
            return made.strip()
        bytes_of = {letter: bytes([byte]) for letter, byte in zip(_bytes_to_letters(), _order(), strict=True)}
        joined = "".join(self.backend.id_to_token(number) or "" for number in known).replace("</w>", " ")
        return b"".join(bytes_of.get(letter, b" ") for letter in joined).decode(errors="replace").strip()

    def row(self, tokens: Sequence[int]) -> list[int]:
        """A row of ``length`` numbers: marks, the tokens (as many as there is room for), and padding."""
        kept = list(tokens[: self.room])
        marked = [*([] if self.start is None else [self.start]), *kept, self.end]
        return marked + [self.pad] * (self.length - len(marked))

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Rows (b, length) of token numbers; what does not fit is cut off, see `cut`."""
        return torch.tensor([self.row(self.tokens(prompt)) for prompt in prompts], dtype=torch.long)


def _bytes_to_letters() -> list[str]:
    """A letter for each of 256 bytes, in the order of CLIP's vocabulary; printable bytes stand for themselves."""
    order = _order()
    return [chr(byte) if place < PLAIN else chr(256 + place - PLAIN) for place, byte in enumerate(order)]


def _order() -> list[int]:
    """256 bytes, those that stand for themselves first."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*plain, *(byte for byte in range(256) if byte not in plain)]


def byte_pairs(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """A tokenizer of CLIP's kind: lower case, words and marks of punctuation, byte pairs within them.

    Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020; the pattern is that of OpenAI's published code.
    """
    model = BPE(dict(vocabulary), list(merges), continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([START, END])
    return tokenizer


@lru_cache(maxsize=1)
def _clip_backend() -> Tokenizer:
    text = gzip.decompress(files("sdkit_diffusers").joinpath("data/clip-merges.txt.gz").read_bytes()).decode()
    merges = [(first, second) for first, second in (line.split() for line in text.splitlines())]
    letters = _bytes_to_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    return byte_pairs({word: number for number, word in enumerate(words)}, merges)


def clip_tokenizer(*, pad: int | None = None, length: int = 77) -> TextTokenizer:
    """CLIP's tokenizer, from the vocabulary in this package.

    Args:
        pad: What fills a row; by default the mark of the end (OpenAI's CLIP), 0 for OpenCLIP's.
        length: Tokens of a row.
    """
    backend = _clip_backend()
    start, end = backend.get_vocab_size() - 2, backend.get_vocab_size() - 1
    return TextTokenizer(backend, length, start, end, end if pad is None else pad)


def read_tokenizer(folder: Path, *, length: int) -> TextTokenizer:
    """The tokenizer in a folder, as transformers saved it.

    Args:
        folder: With ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``.
        length: Tokens of a row, as many as the text encoder has positions for.

    Raises:
        FileError: the files are missing or damaged.
    """
    try:
        backend = _backend(folder)
        settings = {**_json(folder / "special_tokens_map.json"), **_json(folder / "tokenizer_config.json")}
        clip = backend.token_to_id(END) is not None
        end = _number(backend, settings, "eos_token", END if clip else "</s>")
        start = _number(backend, settings, "bos_token", START) if clip else None
        pad = _number(backend, settings, "pad_token", END if clip else "<pad>")
    except FileError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise FileError(f"The tokenizer in {folder.name!r} cannot be read: {error}") from error
    return TextTokenizer(backend, length, start, end, pad)


def _backend(folder: Path) -> Tokenizer:
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.is_file():
        backend = Tokenizer.from_file(str(whole))
        backend.no_padding()
        backend.no_truncation()
        return backend
    if vocabulary.is_file() and merges.is_file():
        lines = [line.split() for line in merges.read_text(encoding="utf-8").splitlines() if line[:8] != "#version"]
        return byte_pairs(_json(vocabulary), [(line[0], line[1]) for line in lines if len(line) == 2])
    raise FileError(
        f"The folder {folder.name!r} has neither tokenizer.json nor vocab.json with merges.txt; a sentencepiece model "
        "alone is not read (save it with transformers once, which writes tokenizer.json)."
    )


def _json(path: Path) -> dict[str, Any]:
    made = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(made, dict):
        raise FileError(f"{path.name!r} is not a JSON object.")
    return made


def _number(backend: Tokenizer, settings: Mapping[str, Any], name: str, usual: str) -> int:
    token = settings.get(name) or usual
    text = token["content"] if isinstance(token, dict) else str(token)
    number: int | None = backend.token_to_id(text)
    if number is None:
        raise FileError(f"The tokenizer's {name} {text!r} is not in its vocabulary.")
    return number
