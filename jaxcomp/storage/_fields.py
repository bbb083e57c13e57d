"""What a manifest says, read with mistrust: every field is of its kind and within its range, and none is left over."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from jaxcomp.constraints import Layout, View

_MANY = 2**40
_AXES = "RrCct"


class Fields:
    """The fields of one JSON object; each is taken once, and `end` makes sure that nothing else is there.

    Args:
        found: what should be an object.
        what: how messages call it.
    """

    def __init__(self, found: Any, what: str):
        if not isinstance(found, dict):
            raise ValueError(f"{what} is {_shown(found)}, expected an object")
        self._left, self._what = dict(found), what

    def any(self, name: str) -> Any:
        if name not in self._left:
            raise ValueError(f"{self._what} has no field {name!r}, only {sorted(self._left)}")
        return self._left.pop(name)

    def whole(self, name: str, low: int = 0, high: int = _MANY) -> int:
        found = self.any(name)
        if type(found) is not int or not low <= found <= high:
            raise ValueError(f"{self._what}: {name} is {_shown(found)}, expected a whole number from {low} to {high}")
        return found

    def truth(self, name: str) -> bool:
        found = self.any(name)
        if type(found) is not bool:
            raise ValueError(f"{self._what}: {name} is {_shown(found)}, expected true or false")
        return found

    def text(self, name: str, pattern: str = ".*") -> str:
        found = self.any(name)
        if type(found) is not str or not re.fullmatch(pattern, found, re.DOTALL):
            raise ValueError(f"{self._what}: {name} is {_shown(found)}, expected a string of the form {pattern}")
        return found

    def items(self, name: str, least: int = 0) -> list:
        found = self.any(name)
        if type(found) is not list or len(found) < least:
            raise ValueError(f"{self._what}: {name} is {_shown(found)}, expected a list of {least} or more")
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        found = self.items(name)
        if len(found) > 32 or any(type(n) is not int or not 0 <= n <= _MANY for n in found):
            raise ValueError(f"{self._what}: {name} is {_shown(found)}, expected up to 32 sizes, none below zero")
        return tuple(found)

    def layout(self, name: str) -> Layout | None:
        found = self.any(name)
        if found is None:
            return None
        if type(found) is not str or not re.fullmatch("[a-z]{0,32}", found):
            raise ValueError(f"{self._what}: {name} is {_shown(found)}, expected a letter for every axis, or null")
        return Layout(found)

    def view(self, name: str) -> View:
        fields = Fields(self.any(name), f"{self._what}: {name}")
        sides: dict[str, Any] = {side: fields.any(side) for side in ("rows", "columns")}
        for side, found in sides.items():
            if found is not None and (type(found) is not int or not 1 <= found <= _MANY):
                raise ValueError(f"{self._what}: {side} of {name} is {_shown(found)}, expected a size, or null for all")
        axes: dict[str, Any] = {axis: fields.text(axis, f"[{_AXES}]*") for axis in ("pools", "groups", "elements")}
        named = "".join(axes.values())
        if len(set(named)) < len(named) or not set("RrCc") <= set(named):
            raise ValueError(f"{self._what}: {name} names the axes {named!r}, expected each of RrCc once and t at most")
        view = View(
            fields.text("name"),
            **sides,
            **axes,
            taps=fields.text("taps", "columns|axis|required"),
            diagonal=fields.truth("diagonal"),
            layout=fields.layout("layout"),
        )
        if view.diagonal and view.rows != view.columns:
            raise ValueError(f"{self._what}: {name} has diagonals of tiles {view.rows} by {view.columns}, not square")
        fields.end()
        return view

    def end(self) -> None:
        if self._left:
            raise ValueError(f"{self._what} has unknown fields {sorted(self._left)}")


def of_view(view: View) -> dict[str, Any]:
    """What `Fields.view` reads."""
    names = ("name", "rows", "columns", "pools", "groups", "elements", "taps", "diagonal")
    sides = {name: getattr(view, name) for name in names}
    sides |= {side: None if sides[side] is None else int(sides[side]) for side in ("rows", "columns")}
    return sides | {"layout": of_layout(view.layout)}


def of_layout(layout: Layout | None) -> str | None:
    """What `Fields.layout` reads."""
    return None if layout is None else layout.axes


def parse(text: bytes, what: str) -> Any:
    """JSON in which no key stands twice and every number is a whole one, however deep it is meant to be.

    Raises:
        ValueError: it is something else.
    """

    def once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
        (key, times), *_ = Counter(key for key, _ in pairs).most_common(1) or [("", 0)]
        if times > 1:
            raise ValueError(f"{what} has the key {_shown(key)} {times} times, expected once")
        return dict(pairs)

    def refuse(number: str) -> None:
        raise ValueError(f"{what} holds the number {_shown(number)}, expected whole numbers only")

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_float=refuse, parse_constant=refuse)
    except RecursionError:
        raise ValueError(f"{what} is nested too deep: the file is damaged, or was not written by jaxcomp") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is no JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is no UTF-8: {error}") from None


def _shown(found: Any) -> str:
    text = repr(found)
    return text if len(text) <= 80 else f"{text[:77]}..."
