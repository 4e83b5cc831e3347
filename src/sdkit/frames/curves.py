"""Parameters that change over time.

A schedule is written ``"0:(1.0), 30:(1.2*sin(t/8))"``: a frame, a colon, a number or an expression; as Deforum writes
it. Between numbers values are interpolated; an expression holds until the next key and is evaluated at every frame.
Before the first and after the last key the nearest value holds. Without a colon the text is one expression for all
frames. ``; ease=cubic`` at the end chooses how one number becomes the next.

Expressions are read by the parser below and by nothing else: numbers, ``+ - * / % **``, comparisons (1 or 0), brackets,
``pi``, the functions in `FUNCTIONS`, and three variables: t the frame, max_f the number of the last frame, s the seed.

    schedule   := entry ("," entry)* | expression         entry := expression ":" expression
    expression := sum (("<" | "<=" | ">" | ">=" | "==" | "!=") sum)?
    sum        := product (("+" | "-") product)*          product := sign (("*" | "/" | "%") sign)*
    sign       := ("+" | "-") sign | power                power := atom ("**" sign)?
    atom       := number | name | name "(" expression ("," expression)* ")" | "(" expression ")"
"""

from __future__ import annotations

import math
import operator
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from attrs import field, frozen

from sdkit.errors import ParameterError, nearest
from sdkit.frames.time import Timeline

__all__ = ["EASES", "Curve", "eased"]

FUNCTIONS: dict[str, tuple[int, Callable[..., float]]] = {
    "sin": (1, math.sin),
    "cos": (1, math.cos),
    "tan": (1, math.tan),
    "exp": (1, math.exp),
    "log": (1, math.log),
    "sqrt": (1, math.sqrt),
    "abs": (1, abs),
    "floor": (1, math.floor),
    "ceil": (1, math.ceil),
    "round": (1, round),
    "min": (-1, min),
    "max": (-1, max),
    "where": (3, lambda condition, then, otherwise: then if condition else otherwise),
}
"""Name to (number of arguments, or -1 for any number from 1, function)."""
VARIABLES = ("t", "max_f", "s", "pi")
SUMS = {"+": operator.add, "-": operator.sub}
PRODUCTS = {"*": operator.mul, "/": operator.truediv, "%": math.fmod}
COMPARISONS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
EASES: dict[str, Callable[[float], float]] = {
    "linear": lambda u: u,
    "cubic": lambda u: u * u * (3 - 2 * u),
    "cosine": lambda u: (1 - math.cos(math.pi * u)) / 2,
    "step": lambda u: 0.0,
}
"""How the share u of the way from one key to the next, 0 to 1, becomes the share of the next key's value."""
LONGEST = 20_000
DEEPEST = 50
_TOKEN = re.compile(r"\s*(?:((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|(\*\*|<=|>=|==|!=|[-+*/%<>(),:]))")

Value = Callable[[Mapping[str, float]], float]


def eased(ease: str, share: float) -> float:
    """The share of the next key's value at a share of the way.

    Raises:
        ParameterError: there is no ease of that name.
    """
    if ease not in EASES:
        raise ParameterError(f"There is no ease {ease!r}; {nearest(str(ease), EASES)}")
    return EASES[ease](share)


@frozen(eq=False)
class _Key:
    """A key of a schedule: where, what, and whether that is a plain number."""

    frame: Value
    value: Value
    number: bool
    column: int


class _Reader:
    """Reads one schedule, left to right."""

    def __init__(self, text: str) -> None:
        self.text, self.position, self.depth = text, 0, 0
        self.kind, self.token, self.column = "", "", 0
        self.advance()

    def fail(self, what: str, column: int | None = None) -> ParameterError:
        column = (self.column if column is None else column) + 1
        shown = self.text if len(self.text) <= 120 else self.text[:119] + "…"
        return ParameterError(f"The curve {shown!r} cannot be read: {what}, in column {column}.")

    def advance(self) -> None:
        match = _TOKEN.match(self.text, self.position)
        if match is None:
            rest = self.text[self.position :]
            self.column = self.position + len(rest) - len(rest.lstrip())
            if rest.strip():
                raise self.fail(f"{rest.strip()[0]!r} means nothing there")
            self.kind = self.token = ""
            return
        self.kind = ("number", "name", "sign")[(match.lastindex or 1) - 1]
        self.token, self.position = str(match[match.lastindex or 1]), match.end()
        self.column = self.position - len(self.token)

    def take(self, token: str) -> bool:
        found = self.kind == "sign" and self.token == token
        if found:
            self.advance()
        return found

    def demand(self, token: str) -> None:
        if not self.take(token):
            raise self.fail(f"{token!r} is missing before {self.token!r}" if self.token else f"{token!r} is missing")

    def schedule(self) -> list[_Key]:
        column = self.column
        first, number = self.value()
        if not self.kind:
            return [_Key(lambda _: 0.0, first, number, column)]
        keys = []
        while True:
            self.demand(":")
            value, number = self.value()
            keys.append(_Key(first, value, number, column))
            if not self.kind:
                return keys
            self.demand(",")
            if not self.kind:  # people leave a comma at the end
                return keys
            column = self.column
            first, _ = self.value()

    def value(self) -> tuple[Value, bool]:
        """An expression, and whether it is a plain number, in brackets or not."""
        begin = self.column
        made = self.expression()
        written = self.text[begin : self.column].strip()
        return made, re.fullmatch(r"[(\s]*[+-]?\s*(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?[)\s]*", written) is not None

    def expression(self) -> Value:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.fail(f"it is nested more than {DEEPEST} deep")
        left = self.chain(self.product, SUMS)
        if self.kind == "sign" and self.token in COMPARISONS:
            left = self.pair(left, self.chain, self.product, SUMS)
        self.depth -= 1
        return left

    def pair(self, left: Value, read: Callable[..., Value], *rest: Any) -> Value:
        compare = COMPARISONS[self.token]
        self.advance()
        right = read(*rest)
        return lambda names: float(compare(left(names), right(names)))

    def chain(self, part: Callable[[], Value], signs: Mapping[str, Callable[[float, float], float]]) -> Value:
        first, rest = part(), []
        while self.kind == "sign" and self.token in signs:
            act = signs[self.token]
            self.advance()
            rest.append((act, part()))
        if not rest:
            return first

        def made(names: Mapping[str, float]) -> float:
            value = first(names)
            for act, right in rest:
                value = act(value, right(names))
            return value

        return made

    def product(self) -> Value:
        return self.chain(self.sign, PRODUCTS)

    def sign(self) -> Value:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.fail(f"it is nested more than {DEEPEST} deep")
        if self.take("-"):
            of = self.sign()
            made: Value = lambda names: -of(names)  # noqa: E731
        else:
            made = self.sign() if self.take("+") else self.power()
        self.depth -= 1
        return made

    def power(self) -> Value:
        base = self.atom()
        if not self.take("**"):
            return base
        exponent = self.sign()
        return lambda names: math.pow(base(names), exponent(names))

    def atom(self) -> Value:
        kind, token, column = self.kind, self.token, self.column
        if kind == "number":
            self.advance()
            number = float(token)
            return lambda _: number
        if kind == "name":
            self.advance()
            if self.take("("):
                return self.call(token, column)
            if token not in VARIABLES:
                raise self.fail(f"there is no {token!r} ({nearest(token, (*VARIABLES, *FUNCTIONS))})", column)
            return lambda names: names[token]
        if self.take("("):
            inside = self.expression()
            self.demand(")")
            return inside
        raise self.fail(f"a number, a name or '(' is missing before {token!r}" if token else "something is missing")

    def call(self, name: str, column: int) -> Value:
        if name not in FUNCTIONS:
            raise self.fail(f"there is no function {name!r} ({nearest(name, FUNCTIONS)})", column)
        arguments = [self.expression()]
        while self.take(","):
            arguments.append(self.expression())
        self.demand(")")
        count, function = FUNCTIONS[name]
        if count not in (-1, len(arguments)):
            raise self.fail(f"{name} takes {count} argument(s), not {len(arguments)}", column)
        if count == -1 and len(arguments) == 1:
            return arguments[0]
        return lambda names: float(function(*(argument(names) for argument in arguments)))


def _text(value: object) -> str:
    if isinstance(value, Curve):
        return value.text
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Mapping):
        return ", ".join(f"{frame}:({_text(each)})" for frame, each in value.items())
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ParameterError(f"A curve is a number, or text such as '0:(1), 30:(1.2*sin(t/8))', not {value!r}.")
    return f"{value:.17g}" if isinstance(value, float) and float(f"{value:.15g}") != value else f"{value:.15g}"


@frozen(repr=False)
class Curve:
    """A number that changes over time, from a number, a schedule (see the module's text) or ``{frame: value}``.

    Attributes:
        text: The schedule as it was written.

    Raises:
        ParameterError: it cannot be read; the sentence names the column.
    """

    text: str = field(converter=_text)
    _keys: tuple[_Key, ...] = field(init=False, eq=False, repr=False)
    _ease: str = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        text, _, ease = self.text.partition(";")
        if len(text) > LONGEST:
            raise ParameterError(f"A curve has at most {LONGEST} characters, not {len(text)}.")
        name = ease.strip().removeprefix("ease").strip().removeprefix("=").strip() or "linear"
        eased(name, 0.0)
        object.__setattr__(self, "_ease", name)
        object.__setattr__(self, "_keys", tuple(_Reader(text).schedule()))

    def __repr__(self) -> str:
        return repr(self.text)  # so that a component's spelling holds what its parser reads

    def __reduce__(self) -> tuple[type[Curve], tuple[str]]:
        return Curve, (self.text,)  # what was read of it are functions, which cannot be pickled

    @classmethod
    def keys(cls, values: Mapping[int, float], *, ease: str = "linear") -> Curve:
        """Keyframes with an ease: ``linear``, ``cubic`` (slow at both ends), ``cosine`` or ``step``."""
        return cls(_text(values) + ("" if ease == "linear" else f"; ease={ease}"))

    def at(self, i: float, timeline: Timeline, *, seed: int = 0) -> float:
        """The value at frame i (it may lie between frames).

        Raises:
            ParameterError: the expression has no finite value there.
        """
        fixed = {"max_f": float(timeline.frames - 1), "s": float(seed), "pi": math.pi}

        def value(key: _Key, t: float) -> float:
            return self._finite(key.value, {**fixed, "t": float(t)}, t)

        if len(self._keys) == 1:
            key = self._keys[0]
            return value(key, i)
        placed = sorted(
            ((self._finite(key.frame, {**fixed, "t": 0.0}, 0), key) for key in self._keys), key=lambda pair: pair[0]
        )
        frames = [frame for frame, _ in placed]
        for (one, _), (two, key) in pairwise(placed):
            if one == two:
                raise ParameterError(
                    f"The curve {self.text!r} has frame {one:g} twice, again in column {key.column + 1}."
                )
        k = bisect_right(frames, i) - 1
        if k < 0:
            return value(placed[0][1], frames[0])
        frame, key = placed[k]
        if not key.number or k + 1 == len(placed):
            return value(key, i)
        share = eased(self._ease, (i - frame) / (frames[k + 1] - frame))
        start, stop = value(key, frame), value(placed[k + 1][1], frames[k + 1])
        return start + share * (stop - start)

    def _finite(self, function: Value, names: Mapping[str, float], i: float) -> float:
        try:
            found = float(function(names))
        except (ValueError, OverflowError, ZeroDivisionError) as error:
            raise ParameterError(f"The curve {self.text!r} has no value at frame {i:g}: {error}.") from error
        if not math.isfinite(found):
            raise ParameterError(f"The curve {self.text!r} is {found} at frame {i:g}; it must be finite.")
        return found
