"""Tensors in one buffer: none overlap while both live, and no buffer is smaller than what lives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp._workload import Tensor
from jaxcomp.hwmodels._first_fit import first_fit


def chain(sizes):
    return [Tensor(str(i), size, i - 1, i, i) for i, size in enumerate(sizes)]


def live(tensors):
    """The most elements alive at any half step."""
    moments = {moment for tensor in tensors for moment in (tensor.born, tensor.dies)}
    return max((sum(t.elements for t in tensors if t.born <= m <= t.dies) for m in moments), default=0)


tensors = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 12), st.integers(0, 5)).map(
        lambda x: Tensor("t", x[0], x[1] / 2, x[1] / 2 + x[2] / 2)
    ),
    max_size=12,
)


@given(tensors)
def test_no_two_tensors_share_an_address_while_both_live(tensors):
    placed = first_fit(tensors)
    assert placed.peak >= live(tensors)
    for i, a in enumerate(tensors):
        for j, b in enumerate(tensors[:i]):
            if a.born <= b.dies and b.born <= a.dies:
                x, y = placed.addresses[i], placed.addresses[j]
                assert x + a.elements <= y or y + b.elements <= x


@given(st.lists(st.integers(1, 50), min_size=2, max_size=12), st.booleans())
def test_a_chain_that_only_grows_or_shrinks_takes_what_lives(sizes, shrinks):
    tensors = chain(sorted(sizes, reverse=shrinks))
    assert first_fit(tensors).peak == live(tensors)


def test_a_chain_may_take_more_than_lives():
    tensors = chain([10, 5, 3, 9])
    assert (live(tensors), first_fit(tensors).peak) == (15, 18)


@pytest.mark.parametrize("sizes", [[], [7]])
def test_none_and_one(sizes):
    assert first_fit(chain(sizes)).peak == sum(sizes)
