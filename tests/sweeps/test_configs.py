"""Configurations: what grids and draws hold, which share a program, and which are the same to another process."""

import enum
import functools
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given

import jaxcomp as jc
from jaxcomp.sweeps._configs import Configs, choice, grid, log_uniform, random_search, uniform, zip_
from jaxcomp.sweeps._identity import code_key, config_key

# ---- sequences


def test_a_grid_has_every_combination_with_the_last_axis_fastest():
    found = [(c["a"], c["b"], c["c"]) for c in grid(a=[1, 2], b=("x", "y"), c=0.5)]
    assert found == [(1, "x", 0.5), (1, "y", 0.5), (2, "x", 0.5), (2, "y", 0.5)]


def test_axes_are_lists_tuples_ranges_and_vectors_and_all_else_is_one_value():
    spec, matrix = {"w": jc.Sparse(0.5)}, np.ones((2, 2))
    configs = grid(a=range(2), b=np.linspace(0, 1, 3), c=jax.random.split(jax.random.key(0), 2), spec=spec, m=matrix)
    assert len(configs) == 2 * 3 * 2
    assert configs[0]["spec"] == spec and configs[0]["m"] is matrix
    assert len(grid(optimizer=optax.adam(1e-3), name="adam", shape=[(2, 3)])) == 1
    assert type(configs[-1]["b"]) is float and configs[-1]["b"] == 1.0


def test_zip_goes_along_its_axes_together_and_repeats_bare_values():
    assert [tuple(c.values()) for c in zip_(a=[1, 2], b=[3, 4], c=5)] == [(1, 3, 5), (2, 4, 5)]
    with pytest.raises(ValueError, match=r"one length, found {'a': 2, 'b': 3}: jaxcomp.grid combines"):
        zip_(a=[1, 2], b=[1, 2, 3])


def test_sums_products_and_slices_are_configurations_again():
    product = grid(a=[1, 2]) * zip_(b=[3, 4])
    assert [tuple(c.values()) for c in product] == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert isinstance(product[1:], Configs) and [c["b"] for c in product[1:]] == [4, 3, 4]
    assert len(product + product[:1]) == 5
    with pytest.raises(ValueError, match=r"both factors have the keywords \['a'\]"):
        grid(a=[1]) * grid(a=[2])


def test_configurations_do_not_change_with_what_was_taken_from_them():
    configs = grid(a=[1, 2])
    configs[0]["a"] = 7
    next(iter(configs))["a"] = 7
    assert [c["a"] for c in configs] == [1, 2]


def test_what_is_no_configuration_is_refused():
    with pytest.raises(ValueError, match="a configuration is a dict of keyword arguments, found 3"):
        Configs([3])
    with pytest.raises(ValueError, match="axis 'a' has no values"):
        grid(a=[])


def test_it_prints_what_differs_and_shortens_what_is_long():
    drawn = str(grid(solver=[jc.ADMM({"w": jc.Sparse(d)}, rho=0.25) for d in (0.1, 0.2)], seed=range(30)))
    assert "solver.spec.w.density" in drawn and "rho" not in drawn
    assert drawn.startswith("60 configurations, 40 of them") and len(drawn.splitlines()) == 46


# ---- draws


def test_a_longer_search_with_more_axes_begins_with_the_shorter_one():
    axes = {"a": uniform(0, 1), "b": log_uniform(1e-4, 1)}
    short, long = random_search(5, 3, **axes), random_search(9, 3, **axes, c=choice("xyz"), d=1.5)
    assert [c | {"c": x["c"], "d": 1.5} for c, x in zip(short, long, strict=False)] == list(long[:5])
    assert random_search(5, 4, **axes)[0] != short[0]


def test_draws_follow_their_distributions():
    found = random_search(
        400, 0, a=uniform(-1, 3), b=log_uniform(1e-4, 1), c=choice([1, 2, 4]), d=lambda key: jax.random.bits(key)
    )
    a, b = (np.array([c[name] for c in found]) for name in "ab")
    assert -1 <= a.min() < -0.9 and 2.9 < a.max() <= 3 and abs(a.mean() - 1) < 0.2
    assert 1e-4 <= b.min() and b.max() <= 1 and abs(np.mean(np.log10(b)) + 2) < 0.2
    assert all(80 < sum(c["c"] == value for c in found) < 190 for value in (1, 2, 4))
    assert len({int(c["d"]) for c in found}) == 400
    assert abs(np.corrcoef(a, np.log(b))[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(1, 1), "low < high"),
        (lambda: log_uniform(0, 1), "0 < low < high"),
        (lambda: choice([]), "at least one"),
        (lambda: random_search(0, 0, a=1), "count must be at least 1"),
        (lambda: random_search(2, 0, a=[1, 2]), r"axis 'a' is \[1, 2\]: say jaxcomp.choice"),
    ],
)
def test_distributions_that_are_none_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- groups


def solvers(**numbers):
    return [jc.ADMM({"w": jc.Sparse(d)}, **numbers) for d in (0.1, 0.2)]


def test_numbers_and_arrays_share_a_group_and_all_else_parts_it():
    views = [jc.ADMM({"w": jc.Sparse(0.5, jc.blocks(2, 2))})]
    configs = grid(seed=range(3), solver=[*solvers(), *views], norm=["l1", "l2"], on=[True, False], x=np.ones((1, 2)))
    found = configs.groups()
    assert [len(group.indices) for group in found] == [12, 12, 6, 6]
    assert sorted(i for group in found for i in group.indices) == list(range(len(configs)))
    for group in found:
        for i, leaves in zip(group.indices, group.members, strict=True):
            back = group.structure.restored(leaves)
            jax.tree.map(
                np.testing.assert_allclose, *({k: v for k, v in c.items() if k != "norm"} for c in (back, configs[i]))
            )
            assert back["norm"] == configs[i]["norm"]
    assert found[0].structure != found[1].structure and hash(found[0].structure)


def test_named_numbers_are_static_and_equal_ones_of_other_types_are_told_apart():
    assert len(grid(rounds=[1, 2], rho=[0.1, 0.2]).groups(static=["rounds"])) == 2
    assert len(Configs([{"n": 1}, {"n": True}, {"n": 1.0}]).groups(static=["n"])) == 3
    with pytest.raises(ValueError, match=r"static names \['rouds'\], which no configuration has"):
        grid(rounds=[1]).groups(static=["rouds"])


def test_integers_beside_floats_are_floats_and_alone_they_stay():
    (mixed,) = grid(rho=[0, 0.5, 1]).groups()
    (whole,) = grid(seed=[0, 1]).groups()
    assert [struct.dtype for _, struct in mixed.structure.traced] == [np.float32]
    assert [struct.dtype for _, struct in whole.structure.traced] == [np.int32]
    assert mixed.stacked()[0].tolist() == [0.0, 0.5, 1.0]


def test_shapes_and_dtypes_of_arrays_part_groups():
    configs = Configs([{"x": np.ones(2)}, {"x": np.ones(3)}, {"x": np.ones(2, np.int32)}, {"x": np.zeros(2)}])
    assert [group.indices for group in configs.groups()] == [(0, 3), (1,), (2,)]


def test_what_cannot_be_an_argument_is_refused_by_its_path():
    with pytest.raises(ValueError, match=r"a\.b is \{1\}, which is neither a number nor hashable"):
        Configs([{"a": {"b": {1}}}]).groups()
    with pytest.raises(ValueError, match="1099511627776 in a configuration does not fit int32"):
        grid(seed=[2**40]).groups()


# ---- keys


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


def made(scale):
    def inner(x, power=2):
        return scale * x**power

    return inner


DIFFERENT = [
    {"a": 1},
    {"a": 1.5},
    {"a": True},
    {"a": "1"},
    {"a": None},
    {"b": 1},
    {"a": (1,)},
    {"a": [1]},
    {"a": {"a": 1}},
    {"a": ()},
    {"a": np.float32(1)},
    {"a": np.ones(1, np.float32)},
    {"a": np.ones((1, 1), np.float32)},
    {"a": jnp.zeros(1)},
    {"a": jax.random.key(0)},
    {"a": jax.random.key(1)},
    {"a": Colour.RED},
    {"a": Colour.BLUE},
    {"a": jc.Sparse(0.5)},
    {"a": jc.Sparse(0.25)},
    {"a": jc.Sparse(0.5, jc.blocks(2, 2))},
    {"a": jc.Sparse(0.5, jc.blocks(2, 4))},
    {"a": {"w": jc.Sparse(0.5)}},
    {"a": jc.ADMM({"w": jc.Sparse(0.5)})},
    {"a": jc.SLR({"w": jc.Sparse(0.5)})},
    {"a": optax.adam(1e-3)},
    {"a": optax.adam(2e-3)},
    {"a": optax.sgd(1e-3)},
    {"a": made},
    {"a": made(1)},
    {"a": made(2)},
    {"a": functools.partial(made, 1)},
    {"a": lambda x: x},
    {"a": lambda x: x + 1},
    {"a": lambda x: x + 2},
    {"a": lambda x, y=1: x + y},
    {"a": jnp.tanh},
    {"a": jax.nn.relu},
    {"a": float},
    {"a": nn.Dense(3)},
    {"a": nn.Dense(4)},
    {"a": float("nan")},
    {"a": float("inf")},
    {"a": np.dtype("float32")},
    {"a": frozenset({"x", "y"})},
    {"a": Path("x")},
    {"a": b"x"},
]


def test_different_configurations_have_different_keys():
    keys = [config_key(config) for config in DIFFERENT]
    assert len(set(keys)) == len(keys)


def test_the_same_values_in_another_order_or_written_otherwise_have_one_key():
    assert config_key({"a": 1, "b": 0.5}) == config_key({"b": 0.5, "a": 1.0})
    assert config_key({"a": made(1)}) == config_key({"a": made(1)})
    assert config_key({"a": optax.adam(1e-3)}) == config_key({"a": optax.adam(1e-3)})
    assert config_key({"a": np.arange(6).reshape(2, 3).T}) == config_key({"a": np.arange(6).reshape(2, 3).T.copy()})
    assert config_key({"a": jnp.ones(2)}) == config_key({"a": np.ones(2, np.float32)})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    )
)
def test_a_key_is_made_of_anything_plain_and_one_more_layer_changes_it(value):
    key = config_key({"a": value})
    assert key == config_key({"a": value}) and len(key) == 64
    assert key != config_key({"a": [value]})


def test_another_process_finds_the_same_keys():
    code = "from tests.sweeps.test_configs import *; print(*(config_key(c) for c in DIFFERENT))"
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root), "PYTHONHASHSEED": "7", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=env, cwd=root, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [config_key(config) for config in DIFFERENT]


def test_an_object_without_a_name_is_refused_by_its_path():
    with pytest.raises(ValueError, match=r"a\.b is <object object.*cannot be told from others of its class"):
        config_key({"a": {"b": object()}})


def test_the_key_of_code_follows_what_it_does_and_not_how_it_is_laid_out():
    def one(x):
        return x + 1

    def two(x):
        # a comment

        return x + 1

    def three(x):
        return x + 3

    assert code_key(one) == code_key(two) == code_key(jax.jit(one))
    assert len({code_key(fn) for fn in (one, three, functools.partial(one, 1), functools.partial(one, 2))}) == 4
    assert code_key(made(object())) == code_key(made(object())) != code_key(made(2))
