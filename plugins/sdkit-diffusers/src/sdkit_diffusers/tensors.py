"""Tensors in safetensors files: checked from the header alone, read one at a time.

A safetensors file is 8 bytes (n, little endian), n bytes of JSON (name -> dtype, shape, first and last byte), and the
tensors' bytes. Everything that can be wrong with it is found before a tensor is read. Importing this module loads no
torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from sdkit import FileError

if TYPE_CHECKING:
    pass

__all__ = ["Stored", "Weights", "read_header", "sha256", "some"]

LONGEST_HEADER = 32 * 2**20
"""Bytes. The header of the largest model known takes less than one megabyte; training notes may take a few more."""

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
READABLE = frozenset({"F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"})
"""What a weight may be stored as: plain floating-point numbers, without scales that belong to a packed format."""


@frozen
class Stored:
    """Where a tensor is, and what it looks like.

    Attributes:
        file: The file it is in.
        name: Its name there.
        dtype: As safetensors writes it, for example ``"F16"``.
        shape: Its shape.
    """

    file: Path = field(repr=False)
    name: str
    dtype: str
    shape: tuple[int, ...]


def some(names: Iterable[str], count: int = 4) -> str:
    """The first few of many names, for a message."""
    listed = list(names)
    shown = ", ".join(repr(name) for name in listed[:count])
    return shown + (f" and {len(listed) - count} more" if len(listed) > count else "")


def read_header(path: Path) -> dict[str, Stored]:
    """What tensors a file holds. Reads the header only, and checks it against the file's length.

    Raises:
        FileError: it is no safetensors file, or a damaged one; the sentence says how.
    """
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or not 2 <= length <= size - 8:
                # the length of a header may begin with the very bytes a pickle begins with, but a pickle never states
                # a length that fits
                if start[:2] == b"PK" or start[:1] == b"\x80":
                    raise FileError(
                        f"{path.name!r} is a pickle file under another name, which can run any code when it is opened; "
                        "convert it to safetensors in a sandbox."
                    )
                raise FileError(
                    f"{path.name!r} is no safetensors file, or cut off: it has {size} bytes, and its header would "
                    f"take {length}; download or save it again."
                )
            if length > LONGEST_HEADER:
                raise FileError(
                    f"{path.name!r} has a header of {length} bytes; no model needs more than {LONGEST_HEADER}, so it "
                    "is not read."
                )
            text = stream.read(length)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path.name!r} cannot be read ({error.strerror}).") from error
    try:
        listed = json.loads(text)
        if not isinstance(listed, dict):
            raise ValueError("it is not a table of tensors")
        listed.pop("__metadata__", None)
        ends = {name: _entry(name, entry) for name, entry in listed.items()}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FileError(f"The header of {path.name!r} is damaged: {error}; download or save it again.") from error
    _check_places(path, [span for _, _, span in ends.values()], size - 8 - length)
    return {name: Stored(path, name, dtype, shape) for name, (dtype, shape, _) in ends.items()}


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, start, end)):
        raise ValueError(f"the tensor {name!r} has the shape {shape} and the bytes {start} to {end}")
    if dtype not in BITS:
        raise ValueError(f"the tensor {name!r} has the unknown dtype {dtype!r}")
    if (end - start) * 8 != math.prod(shape) * BITS[dtype]:
        raise ValueError(f"the tensor {name!r} of shape {shape} and dtype {dtype} has {end - start} bytes")
    return dtype, shape, (start, end)


def _check_places(path: Path, spans: list[tuple[int, int]], size: int) -> None:
    """One tensor after the other, without gaps, to the end of the file."""
    reached = 0
    for start, end in sorted(spans):
        if start != reached:
            raise FileError(
                f"The header of {path.name!r} is damaged: tensors overlap or leave a gap at byte {start}; download or "
                "save it again."
            )
        reached = end
    if reached != size:
        how = f"cut off: {reached - size} bytes are missing" if reached > size else f"{size - reached} bytes too long"
        raise FileError(f"{path.name!r} is {how} ({size} of {reached}); download or save it again.")


@frozen(eq=False)
class Weights:
    """Tensors by name, in one file or several; a tensor is read when it is asked for.

    Attributes:
        stored: Every tensor by name.
    """

    stored: Mapping[str, Stored] = field(repr=False)

    @classmethod
    def of(cls, files: Iterable[Path]) -> Weights:
        """All tensors of ``files``.

        Raises:
            FileError: a file is damaged, or two of them hold a tensor of one name.
        """
        stored: dict[str, Stored] = {}
        for path in files:
            header = read_header(path)
            twice = stored.keys() & header.keys()
            if twice:
                raise FileError(f"{path.name!r} and another file of this model both hold {some(sorted(twice))}.")
            stored.update(header)
        return cls(stored)

    def under(self, prefix: str) -> Weights:
        """The tensors whose names begin with ``prefix``, named without it."""
        return Weights({name[len(prefix) :]: one for name, one in self.stored.items() if name.startswith(prefix)})

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            FileError: there is none of that name.
        """
        if name not in self.stored:
            raise FileError(f"The tensor {name!r} is missing; this file is not a whole model of its kind.")
        return self.stored[name].shape

    def count(self, pattern: str) -> int:
        """How many layers there are: the first number n for which no name begins with ``pattern.format(n)``."""
        number = 0
        while any(name.startswith(pattern.format(number)) for name in self.stored):
            number += 1
        return number

    def __contains__(self, name: str) -> bool:
        return name in self.stored


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256(files: Iterable[Path]) -> str:
    """SHA-256 of one file, as other tools state it; of several, of the lines ``HASH  NAME`` in the order of names.

    A file is hashed once per process as long as its size and time of change stay.
    """
    hashes = []
    for path in sorted(files, key=lambda path: path.as_posix()):
        status = path.stat()
        hashes.append((_sha256(path.resolve(), status.st_size, status.st_mtime_ns), f"{path.parent.name}/{path.name}"))
    if len(hashes) == 1:
        return hashes[0][0]
    return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in hashes).encode()).hexdigest()
