"""Values as JSON and back: requests, manifests, and what they are made of. Unknown fields are errors."""

from __future__ import annotations

import base64
import json
import math
from functools import cache
from pathlib import PurePath
from typing import Any, TypeVar

import cattrs
from attrs import frozen

from sdkit.errors import ManifestError, SdkitError, UnknownComponent
from sdkit.levels import Level
from sdkit.plugins import registry
from sdkit.plugins.spelling import parse, spell
from sdkit.request import Picture, Request

__all__ = ["Absent", "from_json", "spelled", "to_json"]

T = TypeVar("T")


@frozen
class Absent:
    """A modifier that a file names and that is not installed: it can be read and written again, not applied."""

    text: str

    def apply(self, parts: Any, /) -> Any:
        """Raises `UnknownComponent`, with the names there are."""
        registry().make("modifier", self.text)
        raise UnknownComponent(
            f"The modifier {self.text!r} was not installed when the request was read; read it again."
        )


def to_json(value: object) -> str:
    """A request or a manifest as JSON text. Pictures are inside, so it can be long.

    Raises:
        ManifestError: it holds something that has no JSON form.
    """
    try:
        data = _converter().unstructure(value)
        return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ManifestError(f"This {type(value).__name__} has no JSON form: {error}.") from error


def from_json(text: str, kind: type[T]) -> T:
    """The value that `to_json` wrote.

    Raises:
        ManifestError: the text is no such value; the sentence names the place.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"This is no JSON: {str(error).splitlines()[0]}.") from error
    try:
        return _converter().structure(data, kind)
    except Exception as error:
        reason = "; ".join(cattrs.transform_error(error, format_exception=_reason))
        raise ManifestError(f"This is no {kind.__name__} of sdkit's: {reason}.") from error


def spelled(modifier: object) -> str:
    """A modifier as text: what makes it again if a plugin registers it, else its type. Paths lose their folders."""
    if isinstance(modifier, Absent):
        return modifier.text
    text = modifier if isinstance(modifier, str) else registry().spell("modifier", modifier)
    if text is None:
        return f"custom:{type(modifier).__name__}"
    try:
        name, parameters = parse(text)
    except SdkitError:
        return text
    return spell(name, {key: _without_folder(value) for key, value in parameters.items()})


def _without_folder(value: object) -> object:
    if isinstance(value, PurePath) or (isinstance(value, str) and PurePath(value).is_absolute()):
        return PurePath(value).name
    return value


def _made(text: str, _: object) -> Any:
    try:
        return registry().make("modifier", text)
    except UnknownComponent:
        return Absent(text)


def _exact(kind: type) -> Any:
    def read(value: object, _: object) -> object:
        if type(value) is not kind:
            raise ValueError(f"not {kind.__name__}: {value!r}")
        return value

    return read


def _number(value: object, _: object) -> float:
    if value == "inf":
        return math.inf
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"not a number: {value!r}")
    return value


def _reason(error: BaseException, kind: type | None) -> str:
    # our own sentences say more than cattrs' "invalid value"
    if isinstance(error, SdkitError) or type(error) is ValueError:
        return str(error).rstrip(".")
    return cattrs.v.format_exception(error, kind)


@cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    # cattrs would turn 32.5 into 32 and "123" into (1, 2, 3)
    for kind in (int, str, bool):
        converter.register_structure_hook(kind, _exact(kind))
    converter.register_structure_hook(float, _number)
    converter.register_unstructure_hook(float, lambda value: "inf" if value == math.inf else value)
    converter.register_unstructure_hook(Picture, lambda picture: base64.b64encode(picture.png).decode())
    converter.register_structure_hook(Picture, lambda text, _: Picture(base64.b64decode(text, validate=True)))
    converter.register_unstructure_hook(Level, _level_out)
    converter.register_structure_hook(Level, _level_in)
    modifiers = cattrs.gen.override(unstruct_hook=lambda values: [spelled(value) for value in values])
    converter.register_unstructure_hook(
        Request, cattrs.gen.make_dict_unstructure_fn(Request, converter, modifiers=modifiers)
    )
    modifiers = cattrs.gen.override(struct_hook=lambda texts, _: tuple(_made(text, _) for text in texts))
    converter.register_structure_hook(
        Request,
        cattrs.gen.make_dict_structure_fn(Request, converter, _cattrs_forbid_extra_keys=True, modifiers=modifiers),
    )
    return converter


def _level_out(level: Level) -> list[float | bool]:
    numbers: list[float | bool] = [level.t, level.alpha, level.sigma]
    return [*numbers, True] if level.interpolated else numbers


def _level_in(values: Any, _: object) -> Level:
    if not isinstance(values, list) or len(values) not in (3, 4):
        raise ValueError(f"not a level, [t, alpha, sigma]: {values!r}")
    t, alpha, sigma = (_number(value, None) for value in values[:3])
    return Level(t, alpha, sigma, interpolated=len(values) == 4 and values[3] is True)
