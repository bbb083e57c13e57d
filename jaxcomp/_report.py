"""What came of it: how many weights are left, what they take to store, and whether every constraint holds."""

import dataclasses
import json
import math
from typing import Any

import jax
import numpy as np

from jaxcomp._assign import Spec, footprint, gather, members, scatter, violation
from jaxcomp._paths import leaves_by_path
from jaxcomp._table import Table
from jaxcomp.constraints import Constraint, Footprint, Joint


@dataclasses.dataclass(frozen=True)
class LeafReport:
    """One leaf. Bits are totals, but for `value_bits`, which is per stored value.

    Leaves under one `Joint` all have the violation of their group, and as `constraint` what it has chosen for them.
    """

    path: str
    constraint: str | None
    shape: tuple[int, ...]
    size: int
    nonzeros: int
    values: int
    value_bits: float
    index_bits: float
    side_bits: float
    dense_bits: int
    violation: float

    @property
    def stored_bits(self) -> float:
        return self.values * self.value_bits + self.index_bits + self.side_bits


@dataclasses.dataclass(frozen=True)
class Report:
    """Every leaf and the whole. Print it, or take `to_dict` and `to_json`.

    Two ratios are given, since papers mean the first and a disk sees the second: `weight_ratio` counts the values of
    constrained leaves alone, at their bits; `storage_ratio` counts all leaves (biases too) with indices, scales and
    signs.
    """

    leaves: tuple[LeafReport, ...]

    @property
    def constrained(self) -> tuple[LeafReport, ...]:
        return tuple(leaf for leaf in self.leaves if leaf.constraint is not None)

    @property
    def size(self) -> int:
        """Weights of the constrained leaves."""
        return sum(leaf.size for leaf in self.constrained)

    @property
    def nonzeros(self) -> int:
        """Kept weights of the constrained leaves."""
        return sum(leaf.nonzeros for leaf in self.constrained)

    @property
    def weight_ratio(self) -> float:
        """Dense bits over bits of stored values, constrained leaves only, neither indices nor scales counted."""
        return _ratio(
            sum(leaf.dense_bits for leaf in self.constrained),
            sum(leaf.values * leaf.value_bits for leaf in self.constrained),
        )

    @property
    def storage_ratio(self) -> float:
        """Dense bits over stored bits, everything counted."""
        return _ratio(sum(leaf.dense_bits for leaf in self.leaves), sum(leaf.stored_bits for leaf in self.leaves))

    @property
    def violation(self) -> float:
        """The largest distance of a leaf from its set."""
        return float(np.max([leaf.violation for leaf in self.constrained], initial=0.0))  # NaN stays NaN

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        leaves = [dataclasses.asdict(leaf) | {"stored_bits": leaf.stored_bits} for leaf in self.leaves]
        names = ("size", "nonzeros", "weight_ratio", "storage_ratio", "violation")
        return {"leaves": leaves, "total": {name: getattr(self, name) for name in names}}

    def to_json(self, **options: Any) -> str:
        """`to_dict` as JSON, which has no infinite ratios: they are the text "inf". Options go to `json.dumps`."""
        return json.dumps(_plain(self.to_dict()), allow_nan=False, **options)

    def table(self) -> Table:
        """A row a leaf, and the total."""
        columns = [
            "leaf",
            "shape",
            "weights",
            "kept",
            "kept %",
            "bits",
            "index bits",
            "weights only",
            "stored",
            "violation",
        ]
        table = Table("report", columns)
        for leaf in self.leaves:
            free = leaf.constraint is None
            table.row(
                leaf.path,
                "x".join(map(str, leaf.shape)),
                f"{leaf.size:,}",
                f"{leaf.nonzeros:,}",
                f"{100 * leaf.nonzeros / max(leaf.size, 1):.2f}",
                f"{leaf.value_bits:g}",
                f"{leaf.index_bits:,.0f}",
                "-" if free else f"{_ratio(leaf.dense_bits, leaf.values * leaf.value_bits):.1f}x",
                f"{_ratio(leaf.dense_bits, leaf.stored_bits):.1f}x",
                "-" if free else f"{leaf.violation:.1e}",
            )
        table.row(
            "constrained, all" if len(self.constrained) < len(self.leaves) else "all",
            "-",
            f"{self.size:,}",
            f"{self.nonzeros:,}",
            f"{100 * self.nonzeros / max(self.size, 1):.2f}",
            "-",
            f"{sum(leaf.index_bits for leaf in self.leaves):,.0f}",
            f"{self.weight_ratio:.1f}x",
            f"{self.storage_ratio:.1f}x",
            f"{self.violation:.1e}",
        )
        return table

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self):
        return self.table().__rich__()


def report(spec: Spec, params: Any) -> Report:
    """Count every leaf of a tree under its constraints; leaves without one are counted dense.

    >>> import jax.numpy as jnp, jaxcomp as jc
    >>> params = {"w": jnp.array([[4.0, 0.0], [0.0, 3.0]]), "b": jnp.zeros(2)}
    >>> found = jc.report(jc.assign(params, {"w": jc.Sparse(density=0.5)}), params)
    >>> found.nonzeros, found.weight_ratio, round(found.storage_ratio, 2), found.violation
    (2, 2.0, 1.45, 0.0)
    """
    leaves = leaves_by_path(params)
    stored, distance = jax.device_get(_measured(spec, leaves))
    under = scatter({key: _each(spec[key], x) for key, x in gather(spec, leaves).items()})
    far = {path: distance[key] for path, key in members(spec).items()}
    return Report(
        tuple(_leaf(path, x, under.get(path), stored[path], far.get(path, 0.0)) for path, x in leaves.items())
    )


def _each(constraint: Constraint, x: Any) -> Any:
    return constraint.each(x) if isinstance(constraint, Joint) else constraint


@jax.jit  # one program: compiling every operation for every shape by itself takes several times longer
def _measured(spec: Spec, leaves: dict[str, jax.Array]) -> tuple[dict, dict]:
    return footprint(spec, leaves), violation(spec, leaves)


def _leaf(path: str, x: Any, under: Constraint | None, stored: Footprint, violation: float) -> LeafReport:
    return LeafReport(
        path=path,
        constraint=None if under is None else repr(under),
        shape=tuple(x.shape),
        size=int(stored.size),
        nonzeros=int(stored.nonzeros),
        values=int(stored.values),
        value_bits=float(stored.value_bits),
        index_bits=float(stored.index_bits),
        side_bits=float(stored.side_bits),
        dense_bits=8 * int(x.size) * x.dtype.itemsize,
        violation=float(violation),
    )


def _ratio(dense: float, stored: float) -> float:
    return dense / stored if stored else float("inf")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
