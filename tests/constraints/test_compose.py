"""Chain: in every set, nearest where it says so and not elsewhere, and refused where one set would undo another."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp.constraints import (
    Binary,
    Chain,
    Codebook,
    Constraint,
    FixedMask,
    FixedSign,
    Polarized,
    Quantized,
    Sparse,
    Ternary,
    Tied,
    Uniform,
    blocks,
    chunks,
    diagonals,
    elements,
    fragments,
    inputs,
    outputs,
    whole,
)
from tests.constraints.nearest import MATRIX, arrays, assert_nearest, energy, least_error, project

MASK = np.array([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]], bool)
HALF_OF_ROWS = Sparse(0.5, outputs(MATRIX))
EXACT = {
    "fragments of one sign, whole filters": Chain(Polarized(fragments(3, MATRIX)), HALF_OF_ROWS),
    "fragments of one sign, dropped as such": Chain(Polarized(fragments(2, MATRIX)), Sparse(0.3, blocks(1, 2, MATRIX))),
    "tied fragments, whole filters": Chain(Tied(fragments(2, MATRIX)), HALF_OF_ROWS),
    "circulant tiles, whole tiles": Chain(Tied(diagonals(2, MATRIX)), Sparse(0.5, blocks(2, 2, MATRIX))),
    "tied magnitudes, whole filters": Chain(Tied(fragments(3, MATRIX), signs="free"), HALF_OF_ROWS),
    "2:4, whole filters": Chain(Sparse(0.5, chunks(4, MATRIX)), HALF_OF_ROWS),
    "1:2, whole filters": Chain(Sparse(0.5, chunks(2, MATRIX)), HALF_OF_ROWS),
    "mask, fewer weights": Chain(FixedMask(MASK), Sparse(0.3, elements(MATRIX))),
    "mask, fewer inputs": Chain(FixedMask(MASK), Sparse(0.5, inputs(layout=MATRIX))),
    "mask, one sign": Chain(FixedMask(MASK), Polarized(outputs(MATRIX))),
    "mask, ternary": Chain(FixedMask(MASK), Quantized(Ternary(), outputs(MATRIX))),
    "mask, binary": Chain(FixedMask(MASK), Quantized(Binary(), outputs(MATRIX))),
    "fewer weights, ternary": Chain(Sparse(0.25, elements(MATRIX)), Quantized(Ternary(), whole(MATRIX))),
    "mask, given values": Chain(FixedMask(MASK), Codebook([-1.0, 0.0, 2.0])),
    "binary filters, fewer of them": Chain(Quantized(Binary(), outputs(MATRIX)), HALF_OF_ROWS),
    "ternary tiles, fewer of them": Chain(
        Quantized(Ternary(), blocks(2, 2, MATRIX)), Sparse(0.5, blocks(2, 2, MATRIX))
    ),
    "ternary halves, whole filters": Chain(Quantized(Ternary(), fragments(2, MATRIX)), HALF_OF_ROWS),
    "given signs, fewer weights": Chain(FixedSign(2 * MASK - 1), Sparse(0.3, elements(MATRIX))),
    "given signs, ternary": Chain(FixedSign(2 * MASK - 1), Quantized(Ternary(), outputs(MATRIX))),
    "one part": Chain(HALF_OF_ROWS),
}


@pytest.mark.parametrize("chain", EXACT.values(), ids=EXACT)
@given(x=arrays(3, 4))
def test_a_chain_that_says_it_is_exact_is_nearest_of_all_members(chain, x):
    assert chain.exact(x.shape)
    assert_nearest(chain, x)


@given(x=arrays(3, 4, zeros=False), density=st.sampled_from([0.2, 0.5]))
def test_binary_after_sparse_is_nearest_of_all_members_with_as_many_non_zeros(x, density):
    chain = Chain(Sparse(density, elements(MATRIX)), Quantized(Binary(), whole(MATRIX)))
    assert chain.exact(x.shape)
    assert_nearest(chain, x)


@pytest.mark.parametrize(
    "chain, x",
    [
        # The row of larger norm loses more of it to the sign than the other row has.
        (Chain(HALF_OF_ROWS, Polarized(outputs(MATRIX))), [[3.0, -3.0], [3.5, 1.0]]),
        # The largest weight does not lie in the column of largest norm.
        (Chain(Sparse(0.5, inputs(layout=MATRIX)), HALF_OF_ROWS), [[2.5, 3.0], [2.5, 0.0]]),
        # Values that are given do not scale: the row of larger norm fits them no better.
        (Chain(Codebook([0.0, 2.0]), HALF_OF_ROWS), [[1.1, 1.1], [2.0, 0.0]]),
        # A weight of middle size fits no scale of its row: equal ones do, though they are smaller.
        (Chain(Sparse(0.5, elements(MATRIX)), Quantized(Binary(), outputs(MATRIX))), [[9.0, 1.2, 0.1], [1.1] * 3]),
    ],
    ids=str,
)
def test_a_chain_that_says_it_is_not_exact_can_be_beaten(chain, x):
    x = np.array(x, np.float32)
    assert not chain.exact(x.shape)
    assert least_error(chain, x) < energy(x - project(chain, x)) - 0.1


class Unknown(Constraint):
    """A user's set."""

    def __repr__(self):
        return "Unknown()"


@pytest.mark.parametrize(
    "chain, shape, expected",
    [
        (Chain(Polarized(fragments(4)), Sparse(0.5, fragments(2))), (8, 8), False),  # groups the wrong way round
        (Chain(Sparse(0.5, outputs()), Sparse(0.5, chunks(4))), (8, 8), False),
        (Chain(Sparse(0.5), Quantized(Uniform(4))), (8, 8), False),  # alternating scales
        (Chain(Polarized(fragments(2), within=Codebook([0.0])), Sparse(0.5, outputs())), (8, 8), False),  # no cone
        (Chain(Quantized(Uniform(4), outputs()), Sparse(0.5, outputs())), (8, 8), False),
        (Chain(Quantized(Binary(), outputs()), Sparse(0.5, inputs())), (8, 8), False),  # groups are cut apart
        (Chain(Sparse(0.5), Quantized(Ternary(), outputs())), (8, 8), False),  # more scales than one
        (Chain(Sparse(0.5), Quantized(Ternary(), outputs())), (8, 1), True),  # one output, so one scale
        (Chain(Polarized(fragments(2)), Sparse(0.5, outputs()), Quantized(Ternary())), (8, 8), False),  # not proved
        (Chain(Unknown(), Sparse(0.5)), (8, 8), False),  # of a user's set nothing is known
    ],
    ids=str,
)
def test_a_chain_claims_exactness_only_where_it_is_proved(chain, shape, expected):
    assert chain.exact(shape) is expected


TIED, TIED_SIGNS_FREE = Tied(diagonals(2)), Tied(outputs(), signs="free")


@pytest.mark.parametrize(
    "parts, message",
    [
        ((), "at least one constraint, found none"),
        ((Sparse(0.5), TIED), r"Tied.* after Sparse.*: put Tied first"),
        ((Quantized(Ternary()), TIED), r"Tied.* after Quantized.*: put Tied first"),
        ((TIED, Sparse(0.5)), r"Sparse.* after Tied.*cut apart: give it a view whose groups hold whole tied groups"),
        ((TIED, FixedMask()), r"FixedMask.* after Tied.*cut apart"),
        ((TIED, Polarized(fragments(2))), r"Polarized.* after Tied.*cut apart"),
        ((TIED_SIGNS_FREE, Polarized(outputs())), r"Polarized.* after Tied.*cut apart"),
        ((Quantized(Uniform(4)), Quantized(Ternary())), r"Ternary.* after .*Uniform.*whose levels it would leave"),
        ((Sparse(0.5), Sparse(1.5)), r"density must lie in \[0, 1\], found 1.5"),
    ],
)
def test_a_chain_whose_order_would_undo_a_set_is_an_error_that_says_how_to_mend_it(parts, message):
    with pytest.raises(ValueError, match=message):
        Chain(*parts).check(jnp.ones((4, 4)))


def test_chains_in_a_good_order_pass_their_check():
    for chain in [*EXACT.values(), Chain(TIED, Quantized(Uniform(4))), Chain(TIED, Polarized(blocks(2, 2)))]:
        chain.check(jnp.ones((3, 4)))


def test_a_chain_is_stored_as_few_values_at_few_bits_with_the_indices_and_scales_of_all_parts():
    x = jnp.zeros((4, 8)).at[0].set(1.0)
    chain = Chain(Sparse(0.25, outputs(MATRIX)), Quantized(Uniform(4), whole(MATRIX)))
    found = chain.footprint(x)
    assert (found.size, found.nonzeros, found.values, found.value_bits) == (32, 8, 8, 4)
    assert (found.index_bits, found.side_bits, found.bits) == (2, 32, 8 * 4 + 2 + 32)


def test_fitting_a_chain_fits_its_parts():
    chain = Chain(FixedMask(), Sparse(0.5)).fit(jnp.array([1.0, 0.0, 2.0]))
    assert chain.parts[0].mask.tolist() == [True, False, True]
    assert Chain(Sparse(0.5), Polarized(outputs())) == Chain(Sparse(0.5), Polarized(outputs())) != Chain(Sparse(0.5))
    assert repr(Chain(Sparse(0.5))) == "Chain(Sparse(density=0.5, view=View('elements()'), multiple=1))"
