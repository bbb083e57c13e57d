"""How the matrices of a recurrent network are pruned: structures, each reached in one stage or in two."""

from collections.abc import Callable
from typing import Any

import jaxcomp as jc

_GATES = ("ir", "iz", "in", "hr", "hz", "hn")
_LEAST = 2  # inputs that a matrix keeps: the first layer's, of 39, bear less pruning than the others
ROWS_KEPT = 0.5  # by the second stage

BSP = "BSP"  # block columns, then rows
COLUMNS = "block columns"
WHOLE = "whole columns and rows"  # as BSP with one strip
BALANCED = "row-balanced"
FREE = "unstructured"
STRUCTURES = (BSP, COLUMNS, WHOLE, BALANCED, FREE)


def stages(structure: str, params: Any, rate: float, strips: int) -> list[jc.Spec]:
    """The sets of every stage; a stage keeps the zeros of the one before it.

    All structures of a rate keep as many weights of a matrix, ``outputs max(2, round(inputs / rate))``: in one stage so
    many an output; in two stages twice as many inputs, of half of the outputs. The rows go after the columns, as whole
    rows of a matrix: the gate of that unit has its other matrix and its bias left.

    Args:
      structure: one of ``STRUCTURES``. Block columns are chosen within each strip of outputs by itself.
      params: of a `SpeechGRU`, or their shapes.
      rate: weights before by weights kept.
      strips: of the outputs of a matrix.
    """
    of_rows = 1 / ROWS_KEPT if structure in (BSP, WHOLE) else 1

    def columns(inputs: int, outputs: int) -> jc.Constraint:
        views = {
            BSP: jc.block_columns(-(-outputs // strips), inputs),
            COLUMNS: jc.block_columns(-(-outputs // strips), inputs),
            WHOLE: jc.inputs(),
            BALANCED: jc.banks(1),
            FREE: jc.elements(),
        }
        return jc.Sparse(_kept(inputs, rate) * of_rows / inputs, views[structure])

    first = _on_matrices(params, columns)
    if of_rows == 1:
        return [first]
    return [first, _on_matrices(params, lambda inputs, outputs: jc.Sparse(ROWS_KEPT, jc.outputs()))]


def exact_rate(params: Any, rate: float) -> float:
    """Weights before by weights kept, whole numbers of inputs counted: of small matrices less than asked for."""
    shapes = [params[layer][gate]["kernel"].shape for layer, gate in _places(params)]
    return sum(i * o for i, o in shapes) / sum(_kept(i, rate) * o for i, o in shapes)


def circulant(params: Any, block: int) -> list[jc.Spec]:
    """Matrices of which every square tile of so many rows has the same entries in each row, turned by one."""
    return [_on_matrices(params, lambda inputs, outputs: jc.Tied(jc.diagonals(block)))]


def dense(params: Any) -> jc.Spec:
    """The same matrices under no constraint, to count them."""
    return _on_matrices(params, lambda inputs, outputs: jc.Sparse(1.0))


def _kept(inputs: int, rate: float) -> int:
    return min(max(_LEAST, round(inputs / rate)), inputs)


def _on_matrices(params: Any, set_of: Callable[[int, int], jc.Constraint]) -> jc.Spec:
    """A set for each of the six matrices of every layer, by its numbers of inputs and outputs."""
    rules: dict[str, jc.Constraint | None] = {
        f"{layer}/{gate}/kernel": set_of(*params[layer][gate]["kernel"].shape) for layer, gate in _places(params)
    }
    return jc.assign(params, rules)


def _places(params: Any) -> list[tuple[str, str]]:
    return [(layer, gate) for layer in params if layer.startswith("gru") for gate in _GATES]
