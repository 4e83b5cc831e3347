"""How a component with parameters is written as text: ``ddim(eta=0.5)``, ``my-plugin:my-euler``.

Parameters are keywords with literal values (numbers, texts, booleans, None, tuples, lists, mappings of these). Nothing
is evaluated.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from sdkit.errors import ParameterError

__all__ = ["parse", "spell"]


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the parameters that ``text`` spells.

    Raises:
        ParameterError: what stands in the parentheses is not ``name=literal, ...``.
    """
    text = text.strip()
    name, bracket, inside = text.partition("(")
    if not bracket:
        return text, {}
    if not inside.endswith(")"):
        raise ParameterError(f"{text!r} opens a parenthesis and does not end with one; write name(parameter=value).")
    try:
        call = ast.parse(f"f({inside}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        parameters = {}
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in parameters:
                raise ValueError
            parameters[keyword.arg] = ast.literal_eval(keyword.value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ParameterError(
            f"{text!r} cannot be read; write name(parameter=value, ...) with numbers, quoted text, True, False or None."
        ) from None
    return name.strip(), parameters


def spell(name: str, parameters: Mapping[str, Any]) -> str:
    """The text that `parse` reads back as ``(name, parameters)``."""
    if not parameters:
        return name
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in parameters.items())})"
