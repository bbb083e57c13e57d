"""Every constraint keeps the contract of `jaxcomp.testing.check_constraint`, whatever the dtype, layout and size."""

import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcomp.constraints import (
    AdditivePowersOfTwo,
    Affine,
    Binary,
    Box,
    BoxedBall,
    Chain,
    Codebook,
    Compacted,
    Conductances,
    Convex,
    Dykstra,
    FixedMask,
    FixedSign,
    GatherScatter,
    L1Ball,
    L2Ball,
    Layout,
    LowRank,
    Patterned,
    Polarized,
    PowerOfTwo,
    Quantized,
    Simplex,
    Sparse,
    Ternary,
    Tied,
    Unified,
    Uniform,
    banks,
    block_columns,
    block_rows,
    blocks,
    chunks,
    diagonals,
    elements,
    fragments,
    inputs,
    outputs,
    punched,
    whole,
)
from jaxcomp.testing import check_constraint

SHAPES = {"io": (7, 5), "hwio": (3, 1, 3, 5), "oihw": (5, 3, 1, 3), "ioo": (7, 3, 2)}  # no tile below divides them
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
CONSTRAINTS = {  # for a layout
    "sparse": lambda l: Sparse(0.3, elements(l)),
    "sparse filters": lambda l: Sparse(0.4, outputs(l)),
    "sparse channels": lambda l: Sparse(0.5, inputs(layout=l)),
    "sparse blocks": lambda l: Sparse(0.4, blocks(2, 3, l)),
    "sparse columns of blocks": lambda l: Sparse(0.4, block_columns(3, 2, l)),
    "sparse rows of blocks": lambda l: Sparse(0.4, block_rows(3, 2, l)),
    "sparse columns of all blocks": lambda l: Sparse(0.4, block_columns(3, 2, l, free=True)),
    "sparse banks": lambda l: Sparse(0.4, banks(3, l)),
    "whole arrays of filters": lambda l: Sparse(0.4, outputs(l), multiple=2),
    "punched blocks": lambda l: Sparse(0.4, punched(2, 1, l)),
    "2:4": lambda l: Sparse(0.5, chunks(4, l)),
    "fixed mask": lambda l: FixedMask(),
    "polarized": lambda l: Polarized(fragments(4, l)),
    "circulant": lambda l: Tied(diagonals(3, l)),
    "tied magnitudes": lambda l: Tied(fragments(4, l), signs="free"),
    "uniform": lambda l: Quantized(Uniform(4), outputs(l)),
    "uniform without zero": lambda l: Quantized(Uniform(2, zero=False), whole(l)),
    "power of two": lambda l: Quantized(PowerOfTwo(4), blocks(2, 3, l)),
    "ternary": lambda l: Quantized(Ternary(), outputs(l)),
    "binary": lambda l: Quantized(Binary(), whole(l)),
    "patterned": lambda l: Patterned(entries=1, patterns=2, layout=l),
    "patterned, sparse": lambda l: Patterned(entries=2, patterns=2, density=0.4, layout=l),
    "patterned, balanced": lambda l: Patterned(np.eye(3, dtype=int), density=0.6, layout=l, balanced=True),
    "gather-scatter": lambda l: GatherScatter(0.5, 3, layout=l),
    "gather-scatter, free": lambda l: GatherScatter(0.5, 3, free=True, layout=l),
    "gather-scatter, vertical": lambda l: GatherScatter(0.5, 3, rows=3, layout=l),
    "gather-scatter, free strips": lambda l: GatherScatter(0.5, 3, rows=3, free=True, layout=l),
    "gather-scatter, scattered": lambda l: GatherScatter(0.5, 3, rows=3, free=True, layout=l, scatter=True),
    "boxed l2 balls": lambda l: BoxedBall(0.5, "l2", -0.3, 0.5, view=outputs(l)),
    "boxed l1 balls": lambda l: BoxedBall(2.0, "l1", -0.3, 0.5, view=fragments(4, l)),
    "few entries in a box": lambda l: BoxedBall(9, "l0", -0.3, 0.5, view=whole(l)),
    "unified, pruned": lambda l: Unified(0.5, 0.25, fragments(4, l)),
    "compacted": lambda l: Compacted(Polarized(fragments(4)), layout=l),
    "polarized by sum": lambda l: Polarized(fragments(4, l), rule="sum"),
    "polarized values": lambda l: Polarized(fragments(4, l), within=Codebook(np.array([-1.0, 0.0, 0.5, 2.0]))),
    "fixed sign": lambda l: FixedSign(view=fragments(4, l)),
    "codebook": lambda l: Codebook(np.array([-1.0, 0.0, 0.3, 2.0])),
    "affine": lambda l: Affine(3, outputs(l)),
    "additive powers of two": lambda l: Quantized(AdditivePowersOfTwo(4), outputs(l)),
    "conductances": lambda l: Quantized(Conductances(0.1, 1.0, 8), outputs(l)),
    "binary, sparse": lambda l: Chain(Quantized(Binary(), outputs(l)), Sparse(0.5, outputs(l))),
    "fixed sign, ternary": lambda l: Chain(FixedSign(view=fragments(4, l)), Quantized(Ternary(), outputs(l))),
    "l1 balls": lambda l: L1Ball(0.8, outputs(l)),
    "l2 balls of fragments": lambda l: L2Ball(0.5, fragments(4, l)),
    "simplices": lambda l: Simplex(1.0, fragments(4, l)),
    "box": lambda l: Box(-0.3, 0.5),
    "any projection": lambda l: Convex(optax.projections.projection_l2_ball, (0.5,), outputs(l)),
    "low rank": lambda l: LowRank(2, l),
    "box in an l1 ball": lambda l: Dykstra(L1Ball(2.0, whole(l)), Box(-0.3, 0.5)),
    "polarized, sparse": lambda l: Chain(Polarized(fragments(2, l)), Sparse(0.5, outputs(l))),
    "sparse, binary": lambda l: Chain(Sparse(0.5, elements(l)), Quantized(Binary(), whole(l))),
    "polarized, ternary": lambda l: Chain(Polarized(fragments(4, l)), Quantized(Ternary(), blocks(2, 3, l))),
}

OF_KERNELS = {"punched blocks", "patterned", "patterned, sparse", "patterned, balanced"}  # which dense leaves lack


QUICK = {  # to compile; the others are left to the slow run
    *("sparse banks", "whole arrays of filters", "2:4", "fixed mask", "polarized", "circulant", "tied magnitudes"),
    *("ternary", "binary", "gather-scatter", "polarized by sum", "polarized values", "fixed sign", "codebook"),
    *("binary, sparse", "fixed sign, ternary", "l1 balls", "l2 balls of fragments", "box", "any projection"),
}


THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def cases():
    """Every constraint in every layout, with dtypes in turn, so in both; a thorough run has all combinations.

    Most are slow: the quick run meets `QUICK` ones once, layouts in turn.
    """
    for (row, name), (i, dtype), (j, axes) in itertools.product(*map(enumerate, (CONSTRAINTS, DTYPES, SHAPES))):
        turn = i == (j + row // 4) % 2
        if (name in OF_KERNELS and not set(axes) - set("oi")) or not (turn or THOROUGH):
            continue
        quick = name in QUICK and turn and j == row % 4
        yield pytest.param(name, axes, dtype, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize("name, axes, dtype", list(cases()))
def test_every_constraint_keeps_the_contract(name, axes, dtype):
    x = jax.random.normal(jax.random.key(1), SHAPES[axes]).astype(DTYPES[dtype])
    check_constraint(CONSTRAINTS[name](Layout(axes)), x)


@pytest.mark.parametrize("name", ["sparse", "fixed mask", "polarized", "circulant", "tied magnitudes", "ternary"])
def test_one_bad_weight_makes_the_whole_projection_nan(name):
    x = jnp.ones((7, 5))
    bad = jnp.stack([x.at[3, 2].set(value) for value in (jnp.nan, jnp.inf, -jnp.inf)])
    assert np.isnan(jax.jit(jax.vmap(CONSTRAINTS[name](Layout("io")).fit(x).project))(bad)).all()
