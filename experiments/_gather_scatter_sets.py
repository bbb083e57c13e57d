"""Sets for the matrices of a perceptron: gather-scatter in its forms, and what it is set beside, at equal rates."""

from typing import Any

import numpy as np

import jaxcomp as jc

MATRICES = r"fc[12]/kernel"  # all but the last
BANKS = 8  # of the memory that holds the inputs, and weights of a group

HORIZONTAL, HYBRID, VERTICAL = "GS, horizontal", "GS, hybrid", "GS, vertical"
UNEVEN = "GS, horizontal, uneven rows"
SCATTER = "GS, vertical, scattered"
FREE = "unstructured"
ROWS = "row-balanced"
BANKED = "bank-balanced"  # a bank is a run of adjacent inputs, as Cao et al., FPGA 2019, have it
WIDE, TALL = "blocks of 8 inputs", "blocks of 8 outputs"

OURS = HORIZONTAL, HYBRID, VERTICAL, UNEVEN, SCATTER
OTHERS = FREE, ROWS, BANKED, WIDE, TALL


def spec(method: str, params: Any, rate: float) -> jc.Spec:
    """The set of every matrix; all keep as many weights, or nearly, as `HORIZONTAL` at the rate.

    Args:
        method: one of the above.
        params: leaves ``fc1/kernel``, ``fc2/kernel`` of ``[inputs, outputs]``; others are left alone.
        rate: weights before by weights kept, to the nearest whole group of a row.
    """

    def constraint(path: str) -> jc.Constraint:
        inputs = _kernel(params, path).shape[0]
        density = BANKS * max(1, round(inputs / rate / BANKS)) / inputs
        if method in OURS:
            return jc.GatherScatter(
                density,
                banks=BANKS,
                rows=engine_rows(method),
                free=method in (UNEVEN, SCATTER),
                scatter=method == SCATTER,
            )
        views = {
            FREE: jc.elements(),
            ROWS: jc.banks(1),
            BANKED: jc.chunks(-(-inputs // BANKS)),
            WIDE: jc.blocks(1, BANKS),
            TALL: jc.blocks(BANKS, 1),
        }
        return jc.Sparse(density, views[method])

    found = jc.assign(params, {MATRICES: jc.Sparse(1.0)})
    return jc.assign(params, {path: constraint(path) for path in found})


def engine_rows(method: str) -> int:
    """Outputs whose weights are read in one go."""
    return {HYBRID: BANKS // 4, VERTICAL: BANKS, SCATTER: BANKS}.get(method, 1)


def reads(spec: jc.Spec, params: Any, method: str) -> dict[str, float]:
    """Reads that the inputs of all non-zeros take, in units of what they would take if no bank were ever idle.

    In order of the inputs, and in the best order within what is read in one go. A strip of scattered outputs is read
    in the order that its set has found.
    """
    cycles = []
    for path, constraint in spec.items():
        matrix = np.asarray(_kernel(params, path))
        order = getattr(constraint, "order", None)
        matrix = matrix if order is None else matrix[:, np.asarray(order)]
        cycles.append(jc.conflict_cycles(matrix, BANKS, engine_rows(method)))
    in_order, reordered, ideal = np.sum(cycles, axis=0)
    return {"in_order": in_order / ideal, "reordered": reordered / ideal}


def energy(params: Any) -> float:
    """The sum of squares of the weights under a set."""
    return sum(float(np.sum(np.square(params[name]["kernel"], dtype=np.float64))) for name in ("fc1", "fc2"))


def _kernel(params: Any, path: str) -> Any:
    return params[path.split("/")[0]]["kernel"]
