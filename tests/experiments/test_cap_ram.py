"""CAP-RAM's network: whole numbers that a macro can hold, within its bits, and a run cut short."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _cap_ram_network as network
from experiments import _data, cap_ram
from experiments.__main__ import main
from jaxcomp import Readout


@pytest.mark.slow
def test_weights_and_inputs_of_every_layer_are_whole_numbers_that_the_macro_knows():
    seen = {}

    def matmul(name, levels, weights):
        seen[name] = np.asarray(levels), np.asarray(weights)
        return levels @ weights

    images = _data.load("digits").test.image[:4]
    logits = network.apply(network.init(jax.random.key(0)), images, matmul)
    assert logits.shape == (4, 10) and list(seen) == list(network.LAYERS)
    for levels, weights in seen.values():
        assert set(np.unique(levels)) <= set(range(network.LEVELS))
        assert set(np.unique(weights)) <= set(range(-15, 16, 2))


def test_windows_are_those_of_a_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 9, 9, 3))
    kernel = jax.random.normal(jax.random.key(1), (5 * 5 * 3, 4))
    ours = network._windows(x, 5, 2) @ kernel
    order = ("NHWC", "HWIO", "NHWC")
    theirs = jax.lax.conv_general_dilated(x, kernel.reshape(5, 5, 3, 4), (2, 2), "VALID", dimension_numbers=order)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_perfect_macro_computes_the_network_itself():
    params, images = network.init(jax.random.key(0)), jnp.asarray(_data.load("digits").test.image[:4])
    readout = Readout(adc_bits=jnp.inf, weight_bits=network.WEIGHT_BITS, encoding="plus_minus")
    ours = cap_ram._logits(params, images, readout, jax.random.key(0), jax.random.key(1))
    plain = network.apply(params, images, lambda _, x, w: x @ w)
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


def test_the_network_fits_into_one_macro():
    weights = sum(side * side * inputs * outputs for side, inputs, outputs, _ in network.LAYERS.values())
    assert weights == 14_040 and weights * network.WEIGHT_BITS <= 65_536


def test_verdicts_follow_from_paired_differences():
    free, aware = cap_ram._FREE, "for 7 bits"
    by_bits = {free: {5.0: [0.5, 0.6], 7.0: [0.9, 0.91]}, aware: {5.0: [0.7, 0.7], 7.0: [0.97, 0.98]}}
    by_noise = {name: {0.0: [0.98, 0.98], 4.0: [0.9, 0.91]} for name in by_bits}
    claims = cap_ram._claims({free: [0.98, 0.98], aware: [0.98, 0.98]}, by_bits, by_noise)
    assert [claim.split(":")[0] for claim in claims[:4]] == ["Holds", "Holds", "Holds", "Does not hold"]
    assert claims[-1].startswith("noise of 4 steps costs +7.50")


@pytest.mark.slow
def test_a_run_writes_its_table_and_its_plot(tmp_path):
    settings = ["pretrain=3", "train=2", "images=50"]
    assert main(["run", "cap-ram", "--data", "digits", "--quick", "--results", str(tmp_path), "--set", *settings]) == 0
    (result,) = tmp_path.rglob("result.json")
    metrics = json.loads(result.read_text())["metrics"]
    assert metrics["cost"]["storage_bits"] == 56_160
    assert (result.parent / "accuracy_by_bits.png").exists()
