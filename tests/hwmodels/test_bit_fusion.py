"""Bit Fusion: throughput by powers of two, and what every device obeys. No published latency is at hand."""

import pytest

from jaxcomp._workload import Product
from jaxcomp.hwmodels import Exact, Smooth, Stored
from jaxcomp.hwmodels._bit_fusion import BitFusion
from tests.hwmodels import device_laws

LAYER = Product("layer", "layer", 512, 1, 4096, 512)


@pytest.mark.parametrize(("weights", "activations"), [(2, 2), (4, 2), (2, 8), (8, 8), (16, 8), (16, 16)])
def test_time_is_the_product_of_the_widths_rounded_up_to_powers_of_two(weights, activations):
    widest = int(BitFusion().cycles(LAYER, Stored(weight_bits=16, activation_bits=16)))
    found = int(BitFusion().cycles(LAYER, Stored(weight_bits=weights, activation_bits=activations)))
    assert found == widest * weights * activations // 256


@pytest.mark.parametrize(("bits", "rounded"), [(1, 2), (3, 4), (5, 8), (7, 8), (9, 16), (15, 16)])
def test_odd_widths_cost_the_next_power_of_two(bits, rounded):
    found, expected = (BitFusion().cycles(LAYER, Stored(weight_bits=b, activation_bits=b)) for b in (bits, rounded))
    assert int(found) == int(expected)


@pytest.mark.parametrize("bits", [2.0, 4.0, 8.0, 16.0])
def test_smooth_mode_is_exact_at_powers_of_two(bits):
    stored = Stored(weight_bits=bits, activation_bits=bits)
    exact, smooth = (float(BitFusion().cycles(LAYER, stored, mode)) for mode in (Exact(), Smooth()))
    assert smooth == pytest.approx(exact, rel=1e-3)


def test_no_device_does_more_than_its_peak():
    for bits in (2, 3, 8, 16):
        assert float(BitFusion().product(LAYER, Stored(weight_bits=bits, activation_bits=bits)).utilization) <= 1 + 1e-6


@pytest.mark.slow
def test_signs_gradients_and_batches():
    bits, densities = (1, 2, 3, 4, 6, 8, 12, 16), (0.1, 0.3, 0.7, 1.0)
    array = BitFusion(bandwidth=1e9, buffer_bytes=4e3)
    device_laws.check_more_never_costs_less(
        array,
        weight_bits=bits,
        activation_bits=bits,
        density=densities,
        output_density=densities,
        input_density=densities,
    )
    device_laws.check_faster_is_never_slower(array, "clock_hz", "bandwidth", "buffer_bytes")
    stored = Stored(weight_bits=5.3, activation_bits=3.7, input_density=0.63, output_density=0.71)
    device_laws.check_gradients(array, stored, "weight_bits", "activation_bits", "output_density", "clock_hz")
    device_laws.check_batched(array, "bandwidth", [1e8, 1e9, 1e10])
