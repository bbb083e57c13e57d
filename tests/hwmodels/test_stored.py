"""What a device reads of a compressed model: footprints by leaf become numbers by product."""

import jax
import numpy as np
import pytest

import jaxcomp as jc
from jaxcomp._workload import Product, Workload
from jaxcomp.hwmodels import Stored, stored

WORKLOAD = Workload(
    (
        Product("first", "w1", 4, 1, 16, 32),
        Product("second", "w2", 4, 1, 32, 8),
        Product("scores", None, 4, 1, 32, 8, weighted=0),
    )
)
PARAMS = {
    "w1": jax.random.normal(jax.random.key(0), (16, 32)),
    "w2": jax.random.normal(jax.random.key(1), (32, 8)),
}


def footprints(spec):
    return jc.footprint(spec, jc.project(spec, PARAMS))


def test_products_without_a_footprint_are_dense():
    found = stored(WORKLOAD, weight_bits=4.0, activation_bits=[8.0, 4.0, 2.0])
    assert found.weight_bits.tolist() == [4] * 3 and found.activation_bits.tolist() == [8, 4, 2]
    for name in ("density", "output_density", "input_density", "group_density"):
        assert getattr(found, name).tolist() == [1] * 3
    assert found.index_bits.tolist() == found.side_bits.tolist() == [0] * 3
    assert found.weight_bytes(WORKLOAD.stacked).tolist() == [256, 128, 0]


@pytest.mark.slow
def test_a_footprint_reaches_the_products_of_its_leaf_alone():
    spec = jc.assign(PARAMS, {"w1": jc.Sparse(density=0.25, view=jc.outputs()), "w2": None})
    found = stored(WORKLOAD, footprints(spec))
    assert found.density.tolist() == [0.25, 1, 1] and found.output_density.tolist() == [0.25, 1, 1]
    assert found.weight_bits.tolist()[1:] == [32, 8]  # a free leaf is stored as it is, activations have no leaf


@pytest.mark.slow
def test_stored_bytes_are_those_of_the_footprint():
    spec = jc.assign(PARAMS, {"w1": jc.Sparse(density=0.1), "w2": jc.Quantized(jc.Uniform(4))})
    prints = footprints(spec)
    found = stored(WORKLOAD, prints)
    bytes_ = found.weight_bytes(WORKLOAD.stacked)
    np.testing.assert_allclose(bytes_[:2], [prints[path].bits / 8 for path in ("w1", "w2")], rtol=1e-5)


def test_bytes_count_values_indices_and_side_information():
    one = Stored(weight_bits=4.0, density=0.5, index_bits=1.0, side_bits=64.0)
    assert float(one.weight_bytes(Product("dense", "w", 1, 1, 25, 40))) == (1000 * (0.5 * 4 + 1) + 64) / 8


def test_a_footprint_of_a_leaf_that_feeds_nothing_is_refused_and_the_others_named():
    spec = jc.assign(PARAMS, {"w1": jc.Sparse(density=0.5), "w2": None})
    prints = footprints(spec)
    with pytest.raises(ValueError, match=r"\['elsewhere'\].*\['w1', 'w2'\]"):
        stored(WORKLOAD, {"elsewhere": prints["w1"]})


def test_densities_may_be_traced():
    @jax.jit
    def bytes_of(density):
        spec = jc.assign(PARAMS, {"w1": jc.Sparse(density=density), "w2": None})
        return stored(WORKLOAD, footprints(spec)).density[0]

    assert float(bytes_of(0.25)) == 0.25 and float(bytes_of(0.5)) == 0.5


def test_no_products_have_no_arrays():
    assert stored(Workload(())).activation_bits.shape == (0,)
