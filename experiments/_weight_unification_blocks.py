"""The blocks of a layer, read from its numbers: what state they are in, and what unifying them takes."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

import jaxcomp as jc
from experiments import _weight_unification_sets as sets
from experiments._weight_unification_sets import BLOCKS, Shares


@dataclass(frozen=True)
class States:
    """The blocks of one leaf, read from its numbers.

    Attributes:
        weights: in all.
        unified, pruned, free: blocks of one magnitude, of zeros, and others.
        multiplications: that a run over the blocks takes: of a free block one a weight, of a unified one one an output
            or one an input, whichever are fewer, for signs are added; of a pruned one none.
    """

    weights: int
    unified: int
    pruned: int
    free: int
    multiplications: int


def states(leaf: np.ndarray, block: str) -> States:
    """What the blocks of a leaf are; of one magnitude means equal to the last bit."""
    tiles = _tiles(leaf, block)
    smallest, largest = (reduce(tiles, axis=(1, 2)) for reduce in (np.nanmin, np.nanmax))
    outputs, inputs = (np.sum(~np.isnan(tiles), axis=axis).max(axis=1) for axis in (1, 2))
    pruned, unified = largest == 0, (smallest == largest) & (largest > 0)
    free = ~pruned & ~unified
    multiplications = np.sum(np.minimum(outputs, inputs)[unified]) + np.sum((outputs * inputs)[free])
    return States(leaf.size, int(unified.sum()), int(pruned.sum()), int(free.sum()), int(multiplications))


def as_many(shares: Shares, states: States) -> bool:
    """Whether no fewer blocks are unified and pruned than the set says."""
    groups = states.unified + states.pruned + states.free
    n_u, n_p = map(int, jc.Unified(shares.unified, shares.pruned).counts(groups))
    return states.pruned >= n_p and states.pruned + states.unified >= n_p + n_u


def gaussian(n: int) -> float:
    """The share of energy that unifying every block takes from independent normal weights, n of them a block."""
    return (1 - 2 / math.pi) * (1 - 1 / n)


def projected(params: Any, block: str, shares: Shares) -> dict[str, Any]:
    """What unifying the share of all blocks takes, in double precision.

    Returns:
      lost: the share of the layers' energy that is the squared error.
      of_least: that error by the sum of the least errors of blocks, as many as are unified.
      idempotent: whether projecting again changes nothing.
    """
    spec = sets.spec(params, block, shares)
    landed = jc.project(spec, params)
    error = least = energy = 0.0
    for path, leaf in leaves(params).items():
        spreads = np.sort(_spreads(leaf, block))
        least += np.sum(spreads[: int(spec[path].counts(len(spreads))[0])])
        error += np.sum(np.square(np.subtract(leaf, leaves(landed)[path], dtype=np.float64)))
        energy += np.sum(np.square(leaf, dtype=np.float64))
    again = leaves(jc.project(spec, landed))
    same = all(np.array_equal(again[path], leaf) for path, leaf in leaves(landed).items())
    return {"lost": error / energy, "of_least": error / least, "idempotent": same}


def leaves(params: Any) -> dict[str, np.ndarray]:
    """The leaves under a set, by path."""
    paths = jc.assign(params, {sets.LAYERS: jc.Sparse(1.0)})
    return {path: np.asarray(params[path.split("/")[0]]["kernel"]) for path in paths}


def _spreads(leaf: np.ndarray, block: str) -> np.ndarray:
    """The squared error of unifying each block."""
    tiles = _tiles(leaf, block)
    return np.nansum(np.square(tiles - np.nanmean(tiles, axis=(1, 2), keepdims=True)), axis=(1, 2))


def _tiles(leaf: np.ndarray, block: str) -> np.ndarray:
    """The magnitudes ``[blocks, outputs, inputs]`` in double precision; what the last ones lack is NaN."""
    matrix = np.abs(np.asarray(jc.Layout.of(leaf.ndim).to_matrix(leaf), np.float64))
    rows, columns = BLOCKS[block]
    lacking = [(0, -length % side) for length, side in zip(matrix.shape, (rows, columns), strict=True)]
    padded = np.pad(matrix, lacking, constant_values=np.nan)
    tiles = padded.reshape(padded.shape[0] // rows, rows, -1, columns).swapaxes(1, 2)
    return tiles.reshape(-1, rows, columns)
