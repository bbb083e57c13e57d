"""Every solver keeps the contract, on every set, and the contract names what a faulty solver breaks."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import jaxcomp as jc
from jaxcomp.testing import check_solver
from tests.problems import regression, regression_problem

PARAMS, BATCHES = regression_problem()
BATCH = jax.tree.map(lambda x: x[0], BATCHES)
SPEC, DENSE = {"w": jc.Sparse(0.5)}, {"w": jc.Sparse(1.0)}

SOLVERS = {
    "ADMM": jc.ADMM(SPEC, rho=0.1),
    "ADMM, all numbers at work": jc.ADMM(SPEC, rho=0.1, growth=1.5, balance=2.0, rho_max=1.0, tolerance=0.1),
    "ADMM on a chain": jc.ADMM({"w": jc.Chain(jc.Sparse(0.5), jc.Quantized(jc.Binary()))}, rho=0.1),
    "ADMM on two leaves": jc.ADMM({"w": jc.Tied(jc.diagonals(2)), "b": jc.Polarized(jc.whole())}, rho=0.1),
    "ADMM on nothing": jc.ADMM({}),
    "SLR": jc.SLR(SPEC, rho=0.1, s0=0.1),
    "SLR, all numbers at work": jc.SLR(
        SPEC, rho=0.1, s0=0.1, M=5.0, r=0.5, growth=1.5, rho_max=1.0, tolerance=0.1, compare="rounds"
    ),
    "SLR on a chain": jc.SLR({"w": jc.Chain(jc.Sparse(0.5), jc.Quantized(jc.Binary()))}, rho=0.1, s0=0.1),
    "SLR on two leaves": jc.SLR({"w": jc.Tied(jc.diagonals(2)), "b": jc.Polarized(jc.whole())}, rho=0.1, s0=0.1),
    "SLR on nothing": jc.SLR({}),
    "Reweighted": jc.Reweighted(SPEC, 1e-3, threshold=0.1),
    "Reweighted, squared, in blocks": jc.Reweighted({"w": jc.Sparse(1.0, jc.block_columns(3, 2))}, 1e-3, squared=True),
    "Reweighted, a price a leaf": jc.Reweighted({"w": jc.Sparse(0.5), "b": jc.Sparse(1.0)}, {"w": 1e-3, "b": 1e-2}),
    "Reweighted together": jc.Reweighted({"b & w": jc.Together(jc.Sparse(0.5))}, 1e-3, threshold=0.1),
    "Reweighted, decoupled": jc.Reweighted(SPEC, 1e-3, decoupled=True),
    "Reweighted on nothing": jc.Reweighted({}, 1e-3),
    "Dynamic": jc.DynamicRegularization(SPEC, 1e-3),
    "Dynamic, grouped": jc.DynamicRegularization(
        {"w": jc.Sparse(0.5, jc.outputs())}, 1e-3, squared=False, grouped=True
    ),
    "Dynamic, decoupled": jc.DynamicRegularization(SPEC, 1e-3, squared=False, decoupled=True),
    "Dynamic on a chain": jc.DynamicRegularization({"w": jc.Chain(jc.Sparse(0.5), jc.Quantized(jc.Binary()))}, 1e-3),
    "Dynamic on two leaves": jc.DynamicRegularization(
        {"w": jc.Tied(jc.diagonals(2)), "b": jc.Polarized(jc.whole())}, {"w": 1e-3, "b": 1e-3}
    ),
    "Lagrangian": jc.Lagrangian(lambda p: jnp.mean(p["w"] ** 2), 0.3, 0.5, SPEC, penalty=0.1),
    "Progressive ADMM": jc.Progressive(jc.ADMM(DENSE, rho=0.1), jc.ADMM(SPEC, rho=0.1, growth=1.5), rounds=1),
    "Progressive, decoupled": jc.Progressive(
        *(jc.Reweighted(SPEC, strength, decoupled=True) for strength in (1e-4, 1e-2)), rounds=2
    ),
    "Progressive bits": jc.Progressive(
        *(jc.ADMM({"w": jc.Quantized(jc.Uniform(bits))}, rho=0.1) for bits in (8, 4)), rounds=2, curve="linear"
    ),
    "Progressive SLR": jc.Progressive(jc.SLR(DENSE), jc.SLR(SPEC), rounds=2, curve="geometric"),
}


QUICK = {"ADMM", "ADMM on a chain", "SLR", "Reweighted, decoupled", "Dynamic", "Lagrangian", "Progressive SLR"}
ROWS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SOLVERS]


@pytest.mark.parametrize("name", ROWS)
def test_solvers_keep_the_contract(name):
    check_solver(SOLVERS[name], PARAMS, regression, BATCH)


@pytest.mark.parametrize("name", SOLVERS)
def test_states_can_be_donated_together_with_the_parameters(name):
    solver = SOLVERS[name]
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((PARAMS, solver.init(PARAMS)))]
    assert len(set(buffers)) == len(buffers)


def faulty(name, **methods):
    return jc.register_dataclass(dataclasses.dataclass(frozen=True)(type(name, (jc.ADMM,), methods)))(SPEC)


FAULTS = {
    "a state that changes dtype": (
        {"coordinate": lambda self, state, round, params: dataclasses.replace(state, rho=jnp.int32(1))},
        "coordinate changes the structure, a shape or a dtype of the state",
    ),
    "a narrow objective": (
        {"objective": lambda self, state, losses, params: losses.astype(jnp.bfloat16)},
        "objective is bfloat16, expected a float32 scalar",
    ),
    "parameters that stay in the air": ({"land": lambda self, state, params: params}, r"land leaves \['w'\] out of"),
    "parameters that change dtype": (
        {"land": lambda self, state, params: jax.tree.map(lambda x: x.astype(jnp.float16), params)},
        "land changes the structure, a shape or a dtype of the parameters",
    ),
    "a step that changes dtype": (
        {"step": lambda self, state, params, updates: jax.tree.map(lambda x: x.astype(jnp.float16), updates)},
        "step changes the structure, a shape or a dtype of the updates",
    ),
    "a vector in the monitor": (
        {"monitor": lambda self, state: {"u": state.u["w"]}},
        "monitor gives what is no scalar",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(name):
    methods, message = FAULTS[name]
    with pytest.raises(AssertionError, match=f"^Faulty: {message}"):
        check_solver(faulty("Faulty", **methods), PARAMS, regression, BATCH)


def test_a_number_that_compiles_anew_is_named():
    @jc.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Static(jc.ADMM):
        rho: float = dataclasses.field(default=0.1, metadata={"static": True})

    with pytest.raises(AssertionError, match=r"^Static: has a static number, rho"):
        check_solver(Static(SPEC), PARAMS, regression, BATCH)
