"""One pass over a traced program in the order it runs: the products it meets, and what it keeps in memory."""

import contextlib
import functools
import math
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from jax.extend.core import Literal

from jaxcomp._workload import Lookup, Product
from jaxcomp.tracing._origins import _combined, _gathered, _laid, _Origin
from jaxcomp.tracing._products import _PRODUCTS
from jaxcomp.tracing._storage import _Held, _Storage

_BESIDE = frozenset("stack dynamic_update_slice scatter scatter_add scatter-add".split())
_VIEWS = frozenset(
    "reshape squeeze expand_dims transpose broadcast_in_dim slice dynamic_slice split pad rev copy".split()
)
_JOINED = frozenset(("concatenate", "stack"))
_OVERWRITTEN = frozenset("dynamic_update_slice scatter scatter_add scatter-add".split())
_RANDOM = frozenset(
    "random_seed random_wrap random_unwrap random_bits random_split random_fold_in threefry2x32".split()
)
_OPAQUE = frozenset("pallas_call custom_call ffi_call pure_callback io_callback".split())
_UNNAMED = re.compile(r"((\w+\()+\)+)?")  # a scope that only a transformation has made, as 'transpose(jvp())'


class _Value(NamedTuple):
    """What is known of an array: only activations are held in memory."""

    origin: _Origin = _Origin()
    held: _Held | None = None


_Rule = Callable[["_Walk", Any, list[_Value], dict[Any, None]], list[_Value]]
_RULES: dict[str, _Rule] = {}


def _rule(names: str) -> Callable[[_Rule], _Rule]:
    """Register what comes of an operation, by its operands and by the variables that it is the last to read."""

    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(names.split(), rule))
        return rule

    return register


class _Walk:
    """What has been met so far.

    Every value that comes out of a part of the program is held for whoever receives it, which releases it after the
    last use. An operand of a call or a loop that is not used after it is handed over: it may be overwritten inside.
    """

    def __init__(self) -> None:
        self.storage = _Storage()
        self.products: list[Product] = []
        self.unattributed: list[str] = []
        self.lookups: list[Lookup] = []
        self.notes: list[str] = []
        self.repeat = 1
        self.place = ""
        self.mark = ""

    def run(self, jaxpr: Any, args: Sequence[_Value], handed_over: Sequence[bool] = ()) -> list[_Value]:
        """What a program gives for these values; it releases those handed over, none if not said otherwise."""
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        known = dict.fromkeys(jaxpr.constvars, _Value()) | dict(zip(jaxpr.invars, args, strict=True))
        for arg, mine in zip(args, handed_over or [False] * len(args), strict=True):
            if not mine:
                self.storage.hold(arg.held)
        unread, last_reads = _last_reads(jaxpr)
        for var in unread:
            self.storage.release(known[var].held)
        for eqn, last in zip(jaxpr.eqns, last_reads, strict=True):
            ins = [_Value() if isinstance(var, Literal) else known[var] for var in eqn.invars]
            outs = _RULES.get(eqn.primitive.name, _operation)(self, eqn, ins, last)
            known.update(zip(eqn.outvars, outs, strict=True))
            for var in last:
                self.storage.release(known[var].held)
        outs = [_Value() if isinstance(var, Literal) else known[var] for var in jaxpr.outvars]
        given = set[Any]()
        for var, out in zip(jaxpr.outvars, outs, strict=True):
            if out.held:
                if var in given:
                    self.storage.hold(out.held)
                given.add(var)
        return outs

    def keep(self, values: Iterable[_Value]) -> None:
        """They are needed up to the last product there is by now."""
        for value in values:
            if value.held:
                self.storage.touch(value.held, self.storage.products - 1)

    def discard(self, values: Iterable[_Value]) -> None:
        for value in values:
            self.storage.release(value.held)

    @contextlib.contextmanager
    def inside(self, eqn: Any, repeat: int = 1, mark: str = "") -> Iterator[None]:
        """In a part of the program, which runs so often."""
        outside = self.place, self.mark, self.repeat
        self.place, self.mark, self.repeat = _name(self.place, eqn), self.mark + mark, self.repeat * repeat
        yield
        self.place, self.mark, self.repeat = outside

    def name(self, eqn: Any, otherwise: str = "") -> str:
        """Where an operation stands by the scopes it is in, else what it is called otherwise, else its kind."""
        return (_name(self.place, eqn) or otherwise or eqn.primitive.name) + self.mark


@_rule(" ".join(_PRODUCTS))
def _product(walk: _Walk, eqn: Any, ins: list[_Value], last: dict[Any, None]) -> list[_Value]:
    sides = [value.origin for value in ins[:2]]
    out = eqn.outvars[0].aval
    origin = _gathered(sides, out.size)
    if not (origin.data or origin.leaves) or not all(var.aval.size for var in (*eqn.invars, *eqn.outvars)):
        return _operation(walk, eqn, ins, last)  # of constants, or of nothing
    right = _weights(sides)
    fed, other = sides[right], sides[1 - right]
    sizes = _PRODUCTS[eqn.primitive.name](eqn, right, None if fed.data else fed.numbers)
    operands = [value.held for value in ins if value.held]
    parts = []
    for leaves, share in _beside(eqn, right, fed):
        path = leaves[0] if len(leaves) == 1 else None
        name = walk.name(eqn, _owner(path))
        if len(leaves) > 1:
            walk.unattributed.append(f"{name}: its weights are of {', '.join(leaves)} alike")
        elif not (fed.data or path):
            walk.unattributed.append(f"{name}: its weights are a constant of the program, not among the parameters")
        if leaves and other.leaves:
            taken, beside = ", ".join(leaves), ", ".join(other.leaves)
            walk.notes.append(f"{name}: both sides are leaves, {taken} is taken for the weights and {beside} is not")
        numbers = sizes | {"outputs": int(sizes["outputs"] * share)}
        walk.products.append(Product(name, path, **numbers, repeat=walk.repeat, weighted=int(not fed.data)))
        parts.append(walk.storage.product(name, operands, int(out.size * share) if origin.data else None))
    if len(parts) == 1 or not origin.data:
        return [_Value(origin, parts[0])]
    held = walk.storage.joined(functools.partial(walk.name, eqn), out.size, filter(None, parts))
    for part in parts:
        walk.storage.release(part)
    return [_Value(origin, held)]


def _beside(eqn: Any, right: int, fed: _Origin) -> list[tuple[tuple[str, ...], Fraction | int]]:
    """The leaves that feed a product, each with its share of the columns where they lie side by side."""
    if eqn.primitive.name == "dot_general" and fed.axis is not None:
        contracted, batched = eqn.params["dimension_numbers"]
        if fed.axis not in (*contracted[right], *batched[right]):
            whole = sum(fed.lengths)
            return [((leaf,), Fraction(n, whole)) for leaf, n in zip(fed.leaves, fed.lengths, strict=True)]
    return [(fed.leaves, 1)]


def _operation(walk: _Walk, eqn: Any, ins: list[_Value], last: dict[Any, None]) -> list[_Value]:
    """Anything that is neither a product nor made of other operations."""
    kind = eqn.primitive.name
    if kind in _OPAQUE or any(map(_has_products, _parts(eqn))):
        walk.notes.append(f"{walk.name(eqn)}: {kind} is not looked into, its products are not counted")
    origins = [value.origin for value in ins]
    outs = []
    for var in eqn.outvars:
        shape = var.aval.shape
        size = math.prod(shape)
        if kind == "concatenate":
            axis = eqn.params["dimension"]
            origin = _laid(origins, [var.aval.shape[axis] for var in eqn.invars], axis, size)
        elif kind == "convert_element_type":
            origin = origins[0]
        else:
            origin = (_gathered if kind in _BESIDE else _combined)(origins, size)
        if kind in _RANDOM or (not origin.data and var.aval.dtype == bool):  # a mask has no numbers of its own
            origin = _Origin()
        outs.append(_Value(origin, _memory(walk, eqn, shape, ins) if origin.data else None))
    return outs


def _memory(walk: _Walk, eqn: Any, shape: tuple[int, ...], ins: list[_Value]) -> _Held:
    """Where the activation that an operation gives is kept."""
    kind, size = eqn.primitive.name, math.prod(shape)
    activations = [(var.aval.shape, value.held) for var, value in zip(eqn.invars, ins, strict=True) if value.held]
    held = [operand for _, operand in activations]
    if kind in _VIEWS and held:
        walk.storage.hold(held[0])
        return held[0]
    name = functools.partial(_name, walk.place, eqn, kind)
    if kind in _JOINED:
        return walk.storage.joined(name, size, held)
    if kind in _OVERWRITTEN or all(_spreads(operand, shape) for operand, _ in activations):
        return walk.storage.fused(name, size, held)
    for operand in held:
        walk.storage.touch(operand)
    return walk.storage.stored(name(), size)


@_rule("gather")
def _gather(walk: _Walk, eqn: Any, ins: list[_Value], last: dict[Any, None]) -> list[_Value]:
    table, where = (value.origin for value in ins)
    if table.data or not table.leaves or not where.data:
        return _operation(walk, eqn, ins, last)
    shape, size = eqn.invars[1].aval.shape, eqn.outvars[0].aval.size
    path = ", ".join(table.leaves)
    name = walk.name(eqn, _owner(path))
    width = math.prod(eqn.params["slice_sizes"])
    walk.lookups.append(Lookup(name, path, walk.repeat * math.prod(shape[:-1]), width))
    if ins[1].held:
        walk.storage.touch(ins[1].held)
    origin = _Origin((), min(size, table.numbers), data=True)
    return [_Value(origin, walk.storage.stored(name, size))]


def _name(*parts: Any) -> str:
    scopes = (str(part.source_info.name_stack) if hasattr(part, "source_info") else part for part in parts)
    return "/".join(scope for part in scopes for scope in part.split("/") if not _UNNAMED.fullmatch(scope))


def _spreads(operand: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether an array goes element by element with one of this shape."""
    if operand == shape or not operand:
        return True
    return len(operand) == len(shape) and all(n in (1, m) for n, m in zip(operand, shape, strict=True))


def _owner(path: str | None) -> str:
    """The layer that a leaf is of: 'conv' for 'conv/kernel'."""
    return (path or "").rpartition("/")[0] or path or ""


def _weights(sides: Sequence[_Origin]) -> int:
    """Which side of a product is weights: 0 for the left one, 1 for the right one."""
    left, right = ((not side.data, bool(side.leaves), side.numbers) for side in sides)
    return 1 if sides[0].data and sides[1].data else int(right >= left)


def _last_reads(jaxpr: Any) -> tuple[list[Any], list[dict[Any, None]]]:
    """The inputs that are never read, and for every operation what is not read after it; in order, as sets."""
    seen = {var for var in jaxpr.outvars if not isinstance(var, Literal)}
    last_reads = []
    for eqn in reversed(jaxpr.eqns):
        last = {var: None for var in (*eqn.invars, *eqn.outvars) if not isinstance(var, Literal) and var not in seen}
        seen.update(last)
        last_reads.append(last)
    return [var for var in jaxpr.invars if var not in seen], last_reads[::-1]


def _parts(eqn: Any) -> Iterator[Any]:
    """The programs inside an operation."""
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
                yield getattr(part, "jaxpr", part)


def _has_products(jaxpr: Any, others: Container[str] = ()) -> bool:
    """Whether there is a product in it, or another operation of these names."""
    return any(
        eqn.primitive.name in _PRODUCTS
        or eqn.primitive.name in others
        or any(_has_products(part, others) for part in _parts(eqn))
        for eqn in jaxpr.eqns
    )
