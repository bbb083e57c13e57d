"""Eyeriss against the published energies of AlexNet and the chip's measured times."""

import csv
from pathlib import Path

import pytest

from jaxcomp._workload import Product
from jaxcomp.hwmodels import Stored
from jaxcomp.hwmodels._row_stationary import RowStationary
from tests.hwmodels import device_laws

TABLE = Path(__file__).resolve().parents[2] / ".." / "shared" / "reference" / "eyeriss_isca16_energy_breakdown.csv"
WORDS = Stored(weight_bits=16.0, activation_bits=16.0)
CALIBRATED = ("conv1", "conv3", "conv5", "fc1")  # rows on which half of the buffer was chosen for partial sums


def alexnet(batch):
    return [
        Product("conv1", "conv1", batch, 1, 3, 96, 11, 11, 227, 227, 55, 55, 4),
        Product("conv2", "conv2", batch, 2, 96, 256, 5, 5, 27, 27, 27, 27),
        Product("conv3", "conv3", batch, 1, 256, 384, 3, 3, 13, 13, 13, 13),
        Product("conv4", "conv4", batch, 2, 384, 384, 3, 3, 13, 13, 13, 13),
        Product("conv5", "conv5", batch, 2, 384, 256, 3, 3, 13, 13, 13, 13),
        Product("fc1", "fc1", batch, 1, 9216, 4096),
        Product("fc2", "fc2", batch, 1, 4096, 4096),
        Product("fc3", "fc3", batch, 1, 4096, 1000),
    ]


@pytest.mark.parametrize("layer", alexnet(16), ids=lambda layer: layer.name)
def test_energy_of_alexnet_is_that_of_the_isca_paper(layer):
    if not TABLE.exists():
        pytest.skip(f"no published table at {TABLE}")
    with open(TABLE, newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["layer"] == layer.name]
    energy = RowStationary.isca16().product(layer, WORDS).energy_terms
    assert float(energy["arithmetic"]) / 1e9 == pytest.approx(float(row["alu_1e9"]), abs=0.0051)
    assert float(energy["registers"]) / 1e9 == pytest.approx(float(row["rf_1e9"]), abs=0.0051)
    allowed = 0.06 if layer.name in CALIBRATED else 0.04
    assert float(energy["off chip"]) / 1e9 == pytest.approx(float(row["dram_1e9"]), rel=allowed)


def test_energies_are_those_of_the_published_table():
    path = TABLE.with_name("energy_per_access.csv")
    if not path.exists():
        pytest.skip(f"no published table at {path}")
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["unit"] != "mW"]
    chip = [float(row["value"]) for row in rows if row["model"] == "Eyeriss chip 65nm (fit)"]
    ratios = [float(row["value"]) for row in rows if row["model"] == "Eyeriss ISCA16 normalised"]
    eyeriss, isca = RowStationary.eyeriss(), RowStationary.isca16()
    levels = ("mac_j", "register_j", "array_j", "buffer_j", "offchip_j")
    assert [getattr(eyeriss, level) * 1e12 for level in levels] == pytest.approx(chip)
    assert [getattr(isca, level) for level in levels] == [ratios[0], *ratios]


# Milliseconds of processing that the chip was measured at, and its active elements (JSSC 2017, AlexNet, batch 4).
CHIP = {"conv1": (16.5, 154), "conv2": (39.2, 135), "conv3": (21.8, 156), "conv4": (16.0, 156), "conv5": (10.0, 156)}


@pytest.mark.parametrize("layer", alexnet(4)[:5], ids=lambda layer: layer.name)
def test_time_lies_between_full_use_of_the_active_elements_and_the_chips(layer):
    measured, active = CHIP[layer.name]
    found = float(RowStationary.eyeriss().product(layer, WORDS).latency_s) * 1e3
    assert layer.macs / (active * 200e3) * (1 - 1e-6) <= found <= measured
    assert found / measured == pytest.approx({"conv1": 0.84, "conv5": 0.96}.get(layer.name, 0.87), abs=0.03)


def test_a_dense_layer_fills_the_array_with_one_element_sets():
    found = RowStationary.eyeriss().product(Product("fc", "fc", 1, 1, 4096, 4096), WORDS)
    assert float(found.utilization) == pytest.approx(1, abs=1e-3)


def test_a_filter_taller_than_the_array_is_folded():
    layer = Product("tall", "tall", 1, 1, 4, 8, 7, 3, 20, 20, 14, 18)
    short = RowStationary(rows=4, columns=14)
    assert int(short.cycles(layer)) == 4 * 8 * 2 * 18 * 3


@pytest.mark.slow
def test_signs_gradients_and_batches():
    chip = RowStationary(bandwidth=2e8, buffer_bytes=4e3)
    densities = (0.1, 0.3, 0.7, 1.0)
    device_laws.check_more_never_costs_less(
        chip,
        weight_bits=(2, 8, 16),
        activation_bits=(2, 8, 16),
        density=densities,
        output_density=densities,
        input_density=densities,
    )
    device_laws.check_faster_is_never_slower(chip, "clock_hz", "bandwidth", "buffer_bytes")
    stored = Stored(weight_bits=5.3, input_density=0.63, output_density=0.71)
    device_laws.check_gradients(chip, stored, "output_density", "weight_bits", "bandwidth", "clock_hz")
    device_laws.check_batched(chip, "bandwidth", [1e7, 1e8, 1e9])
