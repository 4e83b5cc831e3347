"""A render on disk: everything needed to go on after a crash, in a folder.

``manifest.json`` what is rendered · ``latents/K.safetensors`` latents of the step that begins at frame K, there before
they are decoded · ``frames/K.png`` finished frames · ``frames.jsonl`` one line per finished frame with its hash ·
``state/K.safetensors`` all that the generator knows before frame K. Every file is written whole or not at all, and a
line that a crash cut off is not read; so a killed render loses at most the step in hand, and of that not the latents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import asdict, frozen

from sdkit.errors import ContractError, FileError, ManifestError
from sdkit.files import write_whole
from sdkit.frames.frame import Frame, FrameInfo, State
from sdkit.frames.time import Timeline

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Journal", "load_state", "save_state"]

AGAIN = "delete 'frames' and 'state' in its folder, and frames are made again of the latents that are kept"


def save_state(state: State) -> bytes:
    """A generator's state as the bytes of a safetensors file: tensors as such, all else as JSON in its header.

    Tensors come back on the CPU.

    Raises:
        ContractError: it holds something that is neither.
    """
    import torch
    from safetensors.torch import save

    # copies, because safetensors refuses two names for one memory
    tensors = {name: value.clone().contiguous() for name, value in state.items() if isinstance(value, torch.Tensor)}
    plain = {name: value for name, value in state.items() if name not in tensors}
    try:
        text = json.dumps(plain, allow_nan=False)
        if json.loads(text) != plain:
            raise ValueError("it is not the same when it is read again")
    except (TypeError, ValueError) as error:
        raise ContractError(f"A generator's state holds tensors and what JSON holds, by name: {error}.") from error
    return save(tensors, {"state": text})


def load_state(data: bytes) -> dict[str, Any]:
    """The state that `save_state` wrote."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Any] = dict(load(data))
        length = int.from_bytes(data[:8], "little")
        text = json.loads(data[8 : 8 + length])["__metadata__"]["state"]
        return {**json.loads(text), **tensors}
    except (SafetensorError, ValueError, KeyError) as error:
        raise FileError(f"A checkpoint of the journal cannot be read: {error}.") from error


def _digest(image: Any) -> str:
    return hashlib.sha256(f"{image.shape} ".encode() + image.tobytes()).hexdigest()


@frozen(eq=False)
class Journal:
    """The folder of one render."""

    folder: Path
    timeline: Timeline

    @classmethod
    def open(cls, folder: Path, manifest: str, timeline: Timeline, *, resume: bool, force: bool = False) -> Journal:
        """Begin one, or take one up.

        Raises:
            FileError: the folder has a journal and ``resume`` is not asked, or it cannot be written.
            ManifestError: the journal is of another render; names what differs.
        """
        stands = folder / "manifest.json"
        if stands.exists() and not resume:
            raise FileError(
                f"{folder.name!r} holds the journal of a render already; resume it, or name another folder."
            )
        if stands.exists():
            differs = _differences(stands.read_bytes(), manifest)
            if differs and not force:
                raise ManifestError(
                    f"The journal in {folder.name!r} is of another render: {differs}; ask for the same again, name "
                    "another folder, or force it."
                )
        try:
            for name in ("latents", "frames", "state"):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"The journal's folder {folder.name!r} cannot be made: {error.strerror}.") from error
        write_whole(stands, lambda file: file.write(manifest.encode()))
        return cls(folder, timeline)

    def latents(self, index: int, make: Callable[[], Tensor], /) -> Tensor:
        """See `sdkit.frames.frame.Keeper`."""
        path = self.folder / "latents" / f"{index:07d}.safetensors"
        if path.exists():
            # those that cannot be read are made again: they come out the same
            with suppress(FileError, KeyError):
                found: Tensor = load_state(path.read_bytes())["latents"]
                return found
        made = make()
        data = save_state({"latents": made.cpu()})
        write_whole(path, lambda file: file.write(data))
        return made

    def keep(self, frame: Frame) -> None:
        """A finished frame: its pixels, then a line about it."""
        from PIL import Image

        path = self.folder / "frames" / f"{frame.index:07d}.png"
        write_whole(path, lambda file: Image.fromarray(frame.image).save(file, "PNG", compress_level=1))
        line = {"index": frame.index, "sha256": _digest(frame.image), "info": asdict(frame.info)}
        with open(self.folder / "frames.jsonl", "a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(line))  # begins a line whatever a crash left of the one before

    def checkpoint(self, index: int, state: State) -> None:
        """All the generator knows before frame ``index``; the checkpoint before this one goes."""
        data = save_state(state)
        write_whole(self.folder / "state" / f"{index:07d}.safetensors", lambda file: file.write(data))
        for old in sorted((self.folder / "state").glob("*.safetensors"))[:-2]:
            old.unlink(missing_ok=True)

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """Where to go on: the number of the next frame and the generator's state; None if nothing was done yet."""
        known = self._lines()
        for path in sorted((self.folder / "state").glob("*.safetensors"), reverse=True):
            if path.stem.isdecimal() and all(index in known for index in range(int(path.stem))):
                with suppress(FileError):  # the one before it is as good, and the frames since come out the same
                    return int(path.stem), load_state(path.read_bytes())
        return None

    def frames(self, count: int) -> Iterator[Frame]:
        """The first ``count`` frames, as they were.

        Raises:
            FileError: a file is missing or was changed.
        """
        import numpy as np
        from PIL import Image

        lines = self._lines()
        for index in range(count):
            path = self.folder / "frames" / f"{index:07d}.png"
            try:
                with Image.open(path) as opened:
                    image = np.array(opened.convert("RGB"))
            except (OSError, ValueError, SyntaxError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else error
                raise FileError(f"Frame {index} of the journal cannot be read: {reason}; {AGAIN}.") from error
            if _digest(image) != lines[index]["sha256"]:
                raise FileError(
                    f"Frame {index} of the journal was changed: its pixels are not those that were written; {AGAIN}."
                )
            yield Frame.of(index, self.timeline, image, _info(lines[index]["info"]))

    def _lines(self) -> dict[int, dict[str, Any]]:
        path, found = self.folder / "frames.jsonl", {}
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
                _info(entry["info"])
                found[int(entry["index"])] = {"sha256": str(entry["sha256"]), "info": entry["info"]}
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a crash: that frame is made again
        return found


def _info(data: Mapping[str, Any]) -> FrameInfo:
    mixes = {name: tuple((value, weight) for value, weight in data[name]) for name in ("seeds", "prompts")}
    return FrameInfo(origin=data["origin"], values=dict(data["values"]), **mixes)


def _differences(old: bytes, new: str) -> str:
    """What differs between two manifests, but for filters and sinks, which act on finished frames; "" if nothing."""
    try:
        one, two = (_flat(json.loads(text)) for text in (old, new))
    except (ValueError, AttributeError, TypeError):
        return "its manifest cannot be read"
    differs = [key for key in sorted({*one, *two} - {"filters", "sink"}) if one.get(key) != two.get(key)]
    return f"{', '.join(differs)} differ(s)" if differs else ""


def _flat(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the request's fields and the versions as entries of their own, so that they can be named."""
    inner = {key: manifest.get(key) or {} for key in ("request", "versions")}
    named = {f"{key}.{name}": value for key, fields in inner.items() for name, value in fields.items()}
    return {**{key: value for key, value in manifest.items() if key not in inner}, **named}
