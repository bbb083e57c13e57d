"""Mappings: Timeloop's notation read and written, and steps that cover a layer of any size."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp._workload import Product
from jaxcomp.hwmodels import Exact, Smooth
from jaxcomp.hwmodels._mapping import DIMENSIONS, Mapping, sizes

KEEPS = ("W", "O", "WI", "WIO")
LAYER = Product("conv", None, 2, 1, 48, 40, 3, 5, out_h=12, out_w=14)
TEXT = "L3[WIO] K5 N2 P3 - L2[WI] C3 K4X - L1[O] S5 Q7 K2 C16X - L0[W] Q2 P4 R3"


def test_parsed_factors_stand_where_the_text_has_them():
    mapping = Mapping.parse(TEXT)
    names = {d: i for i, d in enumerate(DIMENSIONS)}
    assert mapping.levels == 4 and mapping.temporal.shape == (3, 7)
    assert mapping.temporal[1, names["K"]] == 2 and mapping.temporal[0, names["R"]] == 3
    assert mapping.spatial[2, names["K"]] == 4 and mapping.spatial[1, names["C"]] == 16
    assert mapping.spatial.prod() == 64
    order = mapping.importance[0]
    assert order[names["Q"]] > order[names["P"]] > order[names["R"]] > order[names["N"]]


def test_text_of_a_parsed_mapping_is_the_text_that_was_parsed():
    assert Mapping.parse(TEXT).text(LAYER, KEEPS) == TEXT


@given(st.data())
def test_text_and_parse_are_inverse(data):
    levels = data.draw(st.integers(1, 4))
    factors = st.lists(st.integers(1, 5), min_size=7, max_size=7)
    temporal, spatial = (np.array([data.draw(factors) for _ in range(levels)], np.float32) for _ in range(2))
    importance = np.array([data.draw(st.permutations(range(7))) for _ in range(levels)], np.float32)
    n, k, c, p, q, r, s = (int(x) for x in (temporal * spatial).prod(0))
    layer = Product("any", None, n, 1, c, k, r, s, out_h=p, out_w=q)
    text = Mapping(temporal[:-1], spatial, importance).text(layer, ("WIO",) * levels)
    again = Mapping.parse(text)
    np.testing.assert_array_equal(again.steps(layer), temporal)
    np.testing.assert_array_equal(again.spatial, spatial)
    for level in range(levels):  # of loops with one step the order is not written
        moving = temporal[level] > 1
        found, given_ = (np.argsort(-x[level][moving], kind="stable") for x in (again.importance, importance))
        np.testing.assert_array_equal(found, given_)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("L1[WIO] K2 - L0[W] Z3", "loop 'Z3' in L0"),
        ("L1[WIO] K2 K4 - L0[W] N1", "loop 'K4' in L1"),
        ("L1[WIO] K2x - L0[W] N1", "loop 'K2x'"),
        ("L0[W] K2 - L1[WIO] N1", "levels from the outermost"),
    ],
)
def test_text_that_cannot_be_read_is_refused_with_the_place(text, found):
    with pytest.raises(ValueError, match=found.replace("[", r"\[")):
        Mapping.parse(text)


@given(size=st.integers(1, 300), inner=st.integers(1, 40), spread=st.integers(1, 40))
def test_the_outermost_level_runs_what_the_others_leave(size, inner, spread):
    temporal, spatial = np.ones((1, 7), np.float32), np.ones((2, 7), np.float32)
    temporal[0, 1], spatial[1, 1] = inner, spread
    steps = Mapping(temporal, spatial, np.zeros((2, 7), np.float32)).steps(Product("dense", None, 1, 1, 1, size))
    assert steps[1, 1] == -(-size // (inner * spread)) and steps[0, 1] == inner


@pytest.mark.parametrize("mode", [Exact(), Smooth()])
def test_one_mapping_serves_many_layers(mode):
    mapping = Mapping.parse(TEXT)
    three = Product("", None, 1, 1, jnp.array([3.0, 96.0, 48.0]), jnp.array([1.0, 80.0, 39.5]))
    steps = mapping.steps(three, mode)
    assert steps.shape == (3, 4, 7)
    np.testing.assert_allclose(steps[:, 3, 2], [1, 2, 1], rtol=1e-6)
    layers = [Product("", None, 1, 1, three.inputs[i], three.outputs[i]) for i in range(3)]
    alone = jnp.stack([mapping.steps(layer, mode) for layer in layers])
    np.testing.assert_allclose(steps, alone, rtol=1e-6)


def test_sizes_are_those_of_one_group():
    depthwise = Product("depthwise", None, 2, 72, 72, 72, 3, 3, out_h=5, out_w=6)
    assert sizes(depthwise).tolist() == [2, 1, 1, 5, 6, 3, 3]
