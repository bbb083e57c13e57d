"""``--set key=value``: text into the fields of a configuration, and back."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Sequence
from typing import Any

from experiments._errors import UsageError


def apply(config: Any, settings: Sequence[str]) -> Any:
    """``config`` with each ``key=value`` applied, the value read as the annotation of the field says.

    Fields may be int, float, bool, str, or a tuple of those, written ``0.8,0.92``.

    Raises:
      UsageError: a setting without ``=``, an unknown key, or a value that the field or the class refuses.
    """
    kinds = typing.get_type_hints(type(config))
    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: expected key=value.")
        if key not in kinds:
            nearest = difflib.get_close_matches(key, kinds, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
            fields = ", ".join(changes(config))
            raise UsageError(f"--set {setting}: there is no field {key!r}; {hint}The fields are {fields}.")
        try:
            values[key] = _parse(text, kinds[key])
        except ValueError as error:
            expected = _expected(kinds[key])
            raise UsageError(f"--set {setting}: {key} is {text!r}, expected {expected}.") from error
    try:
        return dataclasses.replace(config, **values)
    except ValueError as error:  # the configuration's own checks
        raise UsageError(f"--set {' '.join(settings)}: {error}") from error


def changes(config: Any, base: Any = None) -> list[str]:
    """The settings that turn ``base`` into ``config``; without ``base``, one for every field."""
    names = [field.name for field in dataclasses.fields(config)]
    return [
        f"{name}={_unparse(getattr(config, name))}"
        for name in names
        if base is None or getattr(config, name) != getattr(base, name)
    ]


def _parse(text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        items = [item.strip() for item in text.strip("()[] ").split(",") if item.strip()]
        kinds = typing.get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(items)
        return tuple(_parse(item, kind) for item, kind in zip(items, kinds, strict=True))
    return _READERS[kind][1](text)


def _unparse(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_unparse, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _expected(kind: Any) -> str:
    if typing.get_origin(kind) is not tuple:
        return _READERS[kind][0]
    first, *rest = typing.get_args(kind)
    count = "values" if rest == [Ellipsis] else f"{1 + len(rest)} values"
    return f"{count} separated by commas, each {_READERS[first][0]}"


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


_READERS = {
    int: ("an integer", int),
    float: ("a finite number", _finite),
    bool: ("true or false", _boolean),
    str: ("text", str),
}
