"""BISMO's table of MobileNetV2 and HAQ's published policy, and what bits may do to time."""

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from jaxcomp._workload import Product
from jaxcomp.hwmodels import Exact, Smooth, Stored
from jaxcomp.hwmodels._bit_serial import BitSerial
from tests.hwmodels import device_laws

REFERENCE = Path(__file__).resolve().parents[2] / ".." / "shared" / "reference"


def table(name: str) -> list[dict[str, str]]:
    path = REFERENCE / name
    if not path.exists():
        pytest.skip(f"no published table at {path}")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def mobilenet():
    """The layers and bits of every row, and the cycles published."""
    rows = table("haq_bismo_cloud_latency_mobilenetv2.csv")
    number = {
        name: jnp.asarray([float(row[name]) for row in rows]) for name in rows[0] if name not in ("kind", "source")
    }
    channels = jnp.where(jnp.asarray([row["kind"] == "dw" for row in rows]), number["cin"], 1)
    side = (number["kernel"], number["kernel"], number["h_in"], number["h_in"], number["h_out"], number["h_out"])
    layers = Product("", "", number["batch"], channels, number["cin"], number["cout"], *side, number["stride"])
    stored = Stored(weight_bits=number["w_bits"], activation_bits=number["a_bits"])
    return layers, stored, np.asarray(number["cycles"], np.float64)


def test_cycles_agree_with_the_published_table(mobilenet):
    layers, stored, published = mobilenet
    found = np.asarray(BitSerial.cloud().cycles(layers, stored), np.float64)
    error = np.abs(found / published - 1)
    assert len(published) == 3392
    assert (
        np.median(error) <= 0.022 and error.mean() <= 0.055 and np.quantile(error, 0.9) <= 0.147 and error.max() < 0.4
    )
    assert spearmanr(found, published).statistic >= 0.9985
    for bits, expected in ((8, 39_624_933), (6, 26_653_434), (4, 15_716_150), (2, 7_063_425)):
        uniform = np.asarray((stored.weight_bits == bits) & (stored.activation_bits == bits))
        assert published[uniform].sum() == expected
        assert found[uniform].sum() == pytest.approx(expected, rel=0.02)


def test_the_published_policy_costs_what_its_authors_budgeted(mobilenet):
    layers, stored, published = mobilenet
    policy = table("haq_published_policy_mobilenetv2_ratio060.csv")
    bits = np.array([[int(row["w_bits"]), int(row["a_bits"])] for row in policy])
    bits[bits < 0] = 8  # the image is given in 8 bits, and is not quantized again
    place = (np.arange(len(bits)), bits[:, 0] - 1, bits[:, 1] - 1)

    def ratio(cycles):
        cycles = np.asarray(cycles).reshape(53, 8, 8)
        return cycles[place].sum() / cycles[:, 7, 7].sum()

    assert ratio(published) == pytest.approx(0.5965, abs=5e-5)
    assert ratio(BitSerial.cloud().cycles(layers, stored)) == pytest.approx(0.5965, abs=0.004)


def test_smooth_cycles_are_the_exact_ones_but_for_partial_tiles(mobilenet):
    layers, stored, _ = mobilenet
    exact, smooth = (np.asarray(BitSerial.cloud().cycles(layers, stored, mode)) for mode in (Exact(), Smooth()))
    gap = np.abs(smooth / exact - 1)
    assert np.median(gap) < 1e-5 and gap.max() < 0.23
    narrow = np.asarray(BitSerial.cloud().cycles(layers, stored, Smooth(width=1e-3, offset=5e-3)))
    assert np.abs(narrow / exact - 1).max() < 0.03


@pytest.mark.slow
def test_slopes_by_bits_are_not_negative_and_vanish_for_weights_of_depthwise_layers(mobilenet):
    layers, stored, _ = mobilenet

    def total(stored):
        return jnp.sum(BitSerial.cloud().cycles(layers, stored, Smooth()))

    slope = jax.grad(total)(stored)
    for bits in (slope.weight_bits, slope.activation_bits):
        assert jnp.isfinite(bits).all() and (bits >= 0).all()
    alone = np.asarray(layers.groups) > 1
    bound = np.asarray(layers.out_h**2 * stored.activation_bits / 16 > 2 * stored.weight_bits)
    assert (
        np.asarray(slope.weight_bits)[alone & bound] < 1e-4 * np.asarray(slope.activation_bits)[alone & bound]
    ).all()


def test_a_dense_layer_reads_its_weights_once_and_a_convolution_for_every_image():
    dense = Product("fc", "fc", 16, 1, 1280, 1000)
    assert int(BitSerial().cycles(dense)) == 1000 * 5 * 8
    one, sixteen = (Product("conv", "conv", images, 1, 256, 512, out_h=2, out_w=2) for images in (1, 16))
    assert int(BitSerial().cycles(sixteen)) == 16 * int(BitSerial().cycles(one)) == 16 * 512 * 8


def test_the_edges_peak_is_bismos():
    edge = BitSerial.edge()
    assert 2 * edge.rows * edge.columns * edge.dot_bits * edge.clock_hz == pytest.approx(6.5e12, rel=0.01)


def test_two_activations_are_multiplied_at_their_own_bits():
    scores = Product("scores", None, 64, 8, 512, 512, weighted=0)
    cycles = [int(BitSerial().cycles(scores, Stored(weight_bits=w, activation_bits=4.0))) for w in (2.0, 8.0)]
    assert cycles[0] == cycles[1]


def test_energy_is_not_known():
    assert BitSerial().product(Product("a", "a", 1, 1, 8, 8)).energy_terms == {}


@pytest.mark.parametrize("preset", [BitSerial.cloud(), BitSerial.edge()], ids=["cloud", "edge"])
def test_signs_gradients_and_batches(preset):
    bits, densities = tuple(range(1, 9)), (0.1, 0.3, 0.7, 1.0)
    device_laws.check_more_never_costs_less(
        preset,
        weight_bits=bits,
        activation_bits=bits,
        density=densities,
        output_density=densities,
        input_density=densities,
    )
    device_laws.check_faster_is_never_slower(preset, "clock_hz", "dot_bits", "depthwise_bits", "rows", "columns")
    stored = Stored(weight_bits=5.3, activation_bits=3.7, input_density=0.63, output_density=0.71)
    device_laws.check_gradients(preset, stored, "weight_bits", "activation_bits", "input_density", "clock_hz")
    device_laws.check_batched(preset, "dot_bits", [64.0, 128.0, 256.0])
