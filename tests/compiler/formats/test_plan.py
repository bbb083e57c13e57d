"""Cutting outputs into strips: structure is found without being told, and cuts are the cheapest there are."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp.compiler.formats import candidates
from jaxcomp.compiler.formats._plan import _cut, plans
from jaxcomp.compiler.formats._prices import Prices
from tests.compiler.formats.matrices import block_columns, blocks


def best(matrix, rows=8):
    return plans((matrix != 0)[None], Prices.of(rows))[0]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(0, 60))
def test_buckets_are_the_cheapest_of_all_cuts(needs, call):
    needs = np.sort(needs)[::-1]

    def cost(ends):
        return sum(needs[start] * (end - start) + call for start, end in zip((0, *ends), ends, strict=False))

    inner = range(1, len(needs))
    every = [(*cut, len(needs)) for cuts in range(4) for cut in itertools.combinations(inner, cuts)]
    assert np.isclose(cost(_cut(needs, call)), min(map(cost, every)))


def test_the_width_of_strips_is_found():
    for width in (16, 24, 64):
        plan = best(block_columns(384, 384, width, 0.1))
        assert (plan.width, plan.order) == (width, None)
        assert [bucket.inputs for bucket in plan.buckets] == [38]


def test_strips_that_lie_scattered_are_brought_together():
    matrix = block_columns(384, 384, 32, 0.1)[:, np.random.default_rng(0).permutation(384)]
    plan = best(matrix)
    assert plan.width == 32 and plan.order is not None
    assert plan.used.sum() == 384 // 32 * 38  # as few inputs as if they had never been scattered


def test_a_zero_inside_a_strip_does_not_break_it():
    matrix = block_columns(384, 384, 32, 0.1)
    matrix[:, ::7] *= np.random.default_rng(0).random((384, 55)) < 0.9
    assert best(matrix).width == 32


def test_strips_of_unequal_need_are_filled_up_in_buckets():
    matrix = blocks(1024, 1024, 32, 0.1)
    plan = best(matrix, rows=64)
    assert len(plan.buckets) > 1
    held = sum(bucket.strips.shape[1] * bucket.inputs for bucket in plan.buckets) * plan.width
    assert held < 1.25 * np.count_nonzero(matrix)


def test_removed_inputs_leave_one_smaller_dense_matrix():
    matrix = block_columns(256, 192, 192, 0.25)
    assert candidates(matrix, portable=True)[0].describe() == "1 strip of 192 outputs, 64 of 256 inputs each"


def test_removed_outputs_are_put_back_as_zeros():
    matrix = np.random.default_rng(0).normal(size=(256, 320)).astype(np.float32)
    matrix[:, np.random.default_rng(1).permutation(320)[:240]] = 0
    (found,) = candidates(matrix, portable=True)[:1]
    assert found.describe() == "dense, 256 by 80, outputs put in order"
