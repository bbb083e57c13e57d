"""The report counts what is left and what it takes to store, by hand on small leaves."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcomp as jc

W = jnp.array([[4.0, 0.5, -1.0, 0.25], [-3.0, 2.0, -0.125, 0.75]])  # 2 inputs by 4 outputs
OI = jc.Layout("oi")

# constraint: (weights that are not zero, stored values, bits a value, index bits, bits of scales and signs)
CASES = {
    # 4 of 8 weights; coordinates take 4 x 3 bits, a bitmap takes 8
    "sparse by bitmap": (jc.Sparse(0.5), 4, 4, 32, 8, 0),
    # 1 of 8; coordinates take 3 bits, the bitmap 8
    "sparse by coordinates": (jc.Sparse(1 / 8), 1, 1, 32, 3, 0),
    # 1 of 2 rows of 4, stored whole: coordinates take 1 bit
    "sparse rows": (jc.Sparse(0.5, jc.outputs(layout=OI)), 4, 4, 32, 1, 0),
    "sparse, nothing kept": (jc.Sparse(0.0), 0, 0, 32, 0, 0),
    # 4 of 8 weights, then one bit a weight and one scale of 32 bits
    "sparse then binary": (jc.Chain(jc.Sparse(0.5), jc.Quantized(jc.Binary())), 4, 4, 1, 8, 32),
    # pairs along the rows keep 4 and .5, -1, -3, .75; magnitudes of 31 bits and a sign a pair
    "one sign a fragment": (jc.Polarized(jc.fragments(2, layout=OI)), 5, 8, 31, 0, 4),
    # 4 outputs of 2 weights share a value: all 8 are not zero, 4 are stored
    "tied": (jc.Tied(jc.outputs()), 8, 4, 32, 0, 0),
    # the same with a bit of sign a weight, magnitudes of 31 bits
    "tied magnitudes": (jc.Tied(jc.outputs(), signs="free"), 8, 4, 31, 0, 8),
    "mask": (jc.FixedMask(np.arange(8).reshape(2, 4) < 3), 3, 3, 32, 8, 0),
    "four bits": (jc.Quantized(jc.Uniform(4, zero=False)), 8, 8, 4, 0, 32),
}


@pytest.mark.parametrize("case", CASES)
def test_a_leaf_is_counted_as_by_hand(case):
    constraint, nonzeros, values, value_bits, index_bits, side_bits = CASES[case]
    params = jc.project({"w": constraint}, {"w": W})
    (leaf,) = jc.report({"w": constraint}, params).leaves
    found = (leaf.nonzeros, leaf.values, leaf.value_bits, leaf.index_bits, leaf.side_bits)
    assert found == (nonzeros, values, value_bits, index_bits, side_bits)
    assert (leaf.size, leaf.dense_bits, leaf.shape) == (8, 256, (2, 4))
    assert leaf.stored_bits == values * value_bits + index_bits + side_bits
    assert leaf.violation <= 1e-6


@pytest.fixture
def reported():
    """A sparse leaf of 8, a free bias of 2: 256 dense bits and 64, of which 4 x 32 + 8 and 64 are stored."""
    params = {"w": jnp.where(jnp.abs(W) >= 1, W, 0), "b": jnp.ones(2)}
    return jc.report(jc.assign(params, {"w": jc.Sparse(0.5)}), params)


def test_papers_ratio_counts_weights_alone_and_storage_counts_all(reported):
    assert reported.weight_ratio == 256 / 128
    assert reported.storage_ratio == pytest.approx((256 + 64) / (128 + 8 + 64))
    assert (reported.size, reported.nonzeros, reported.violation) == (8, 4, 0)


def test_a_free_leaf_is_dense(reported):
    (free,) = [leaf for leaf in reported.leaves if leaf.constraint is None]
    assert (free.path, free.values, free.stored_bits, free.dense_bits) == ("b", 2, 64, 64)


def test_narrow_leaves_are_compared_with_their_own_width():
    params = {"w": jnp.array([1.0, 0.0], jnp.bfloat16)}
    found = jc.report(jc.assign(params, {"w": jc.Sparse(0.5)}), params)
    assert (found.leaves[0].dense_bits, found.leaves[0].value_bits, found.weight_ratio) == (32, 16, 2)


def test_violation_is_the_largest_and_keeps_nan():
    spec = {"v": jc.Sparse(0.5), "w": jc.Sparse(0.5)}
    assert jc.report(spec, {"v": jnp.array([1.0, 2.0]), "w": jnp.array([3.0, 4.0])}).violation == 3
    assert np.isnan(jc.report(spec, {"v": jnp.array([jnp.nan, 2.0]), "w": jnp.array([3.0, 4.0])}).violation)


def test_nothing_kept_is_an_infinite_ratio():
    params = {"w": jnp.zeros(4)}
    found = jc.report({"w": jc.Sparse(0.0)}, params)
    assert found.weight_ratio == found.storage_ratio == float("inf")
    assert "inf" in str(found)
    strict = json.loads(found.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert strict["total"]["weight_ratio"] == "inf"


def test_without_constraints_everything_is_free():
    found = jc.report({}, {"w": W})
    assert (found.size, found.violation, found.storage_ratio) == (0, 0, 1)


def test_json_gives_the_numbers_back(reported):
    assert json.loads(reported.to_json()) == json.loads(json.dumps(reported.to_dict()))
    again = json.loads(reported.to_json(indent=1))
    assert again["total"] == {
        "size": 8,
        "nonzeros": 4,
        "weight_ratio": 2.0,
        "storage_ratio": reported.storage_ratio,
        "violation": 0.0,
    }
    assert [leaf["path"] for leaf in again["leaves"]] == ["b", "w"]
    assert again["leaves"][1]["shape"] == [2, 4] and again["leaves"][1]["stored_bits"] == 136


@pytest.mark.parametrize("name", ["[0]", "[bold]w[/bold]", "w[/]"])
def test_the_table_shows_any_path_and_the_total(name):
    params = {name: jnp.array([4.0, 0.0])}
    text = str(jc.report({name: jc.Sparse(0.5)}, params))
    assert name in text and "2.0x" in text
    assert any(line.startswith("│ all ") for line in text.splitlines())
