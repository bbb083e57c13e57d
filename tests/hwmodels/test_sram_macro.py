"""SRAM macros: CAP-RAM's anchors, other chips' voltages, values and bits, and what every device obeys."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jaxcomp._check_device import check_device
from jaxcomp._workload import Product, Workload
from jaxcomp.hwmodels import Stored
from jaxcomp.hwmodels._adc import Converter, survey
from jaxcomp.hwmodels._sram_macro import SramMacro

REFERENCE = Path(__file__).resolve().parents[2] / ".." / "shared" / "reference"


@pytest.fixture(scope="module")
def silicon() -> list[dict[str, str]]:
    path = REFERENCE / "cim_macro_silicon.csv"
    if not path.exists():
        pytest.skip(f"no published table at {path}")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def by_voltage(silicon, macro, quantity, condition=""):
    """Voltages, rising, and the joules or whatever is published for them."""
    rows = [r for r in silicon if r["macro"].startswith(macro) and r["quantity"] == quantity and r["voltage_V"]]
    found = {float(r["voltage_V"]): float(r["value"]) for r in rows if r["condition"] == condition}
    return np.array(sorted(found)), np.array([found[v] for v in sorted(found)])


def ratios(macro: SramMacro, voltages: np.ndarray) -> np.ndarray:
    energy = [float(dataclasses.replace(macro, voltage=v).operation_j()) for v in voltages]
    return np.array(energy)


def test_the_anchors_of_cap_ram_follow_from_its_parameters(silicon):
    macro = SramMacro.cap_ram()
    published = {r["quantity"]: float(r["value"]) for r in silicon if r["macro"] == "CAP-RAM 2021"}
    assert macro.peak_ops / 1e12 == pytest.approx(published["peak throughput"], rel=1e-4)
    assert macro.clock_hz / 1e6 == published["cycle rate"]
    assert macro.operation_j() * 1e12 == pytest.approx(published["energy per 8192-MAC cycle"], rel=3e-4)
    assert macro.power_w * 1e3 == pytest.approx(published["macro power"], rel=3e-4)
    assert macro.peak_ops / macro.power_w / 1e12 == pytest.approx(published["tops_per_w"], rel=1e-4)


def test_the_converter_lies_within_what_a_calibrated_survey_gives():
    share = SramMacro.cap_ram().converter.energy_j(7) / survey(7, 65, 35e6)[0]
    assert 0.3 < float(share) < 0.5


@pytest.mark.parametrize(
    ("macro", "quantity", "condition", "most"),
    [
        ("Jia", "tops_per_w", "", 0.023),
        ("Wang", "tops_per_w", "", 0.173),
        ("Sinangil", "energy", "worst case values", 0.052),
    ],
)
def test_energy_by_the_square_of_the_voltage_is_as_wrong_as_documented(silicon, macro, quantity, condition, most):
    voltages, values = by_voltage(silicon, macro, quantity, condition)
    energy = values if quantity == "energy" else 1 / values
    share = energy / ratios(SramMacro(), voltages)
    error = np.exp(np.log(share).mean()) / share - 1
    assert most - 0.005 < np.abs(error).max() < most


@pytest.mark.parametrize(
    ("macro", "quantity", "condition", "exponent", "most"),
    [("Wang", "tops_per_w", "", 1.63, 0.084), ("Sinangil", "energy", "worst case values", 2.20, 0.02)],
)
def test_an_exponent_from_every_other_voltage_serves_the_rest(silicon, macro, quantity, condition, exponent, most):
    voltages, values = by_voltage(silicon, macro, quantity, condition)
    energy = values if quantity == "energy" else 1 / values
    fitted, _ = np.polyfit(np.log(voltages[::2]), np.log(energy[::2]), 1)
    assert fitted == pytest.approx(exponent, abs=0.01)
    share = energy / ratios(SramMacro(voltage_exponent=fitted), voltages)
    error = np.exp(np.log(share[::2]).mean()) / share - 1
    assert np.abs(error[1::2]).max() < most


def test_converters_of_a_chip_follow_the_square_of_its_voltage(silicon):
    voltages, energy = by_voltage(silicon, "Jia", "energy adc")
    found = [Converter.switched_capacitor(65, voltage).energy_j(8) for voltage in voltages]
    assert found[1] / found[0] == pytest.approx(energy[1] / energy[0], rel=0.005)


def test_energy_by_values_is_affine_above_zero(silicon):
    rows = [r for r in silicon if r["quantity"] == "energy per test action of the macro model"]
    found = {float(r["condition"].split()[-1]): float(r["value"]) for r in rows}
    means, energy = np.array(sorted(found)), np.array([found[x] for x in sorted(found)])
    slope, base = np.polyfit(means[1::2], energy[1::2], 1)  # 1, 4, 8, 12
    full = base + slope * 15
    macro = SramMacro(converter=Converter(0.0, 0.0), cell_j=full / 8192, value_share=slope * 15 / full)
    error = np.array([float(macro.operation_j(x / 15)) for x in means]) / energy - 1
    assert np.abs(error[2::2]).max() < 0.03
    assert error[0] == pytest.approx(0.32, abs=0.01)  # outputs that are all zero stop switching


def test_input_bits_divide_the_rate_as_on_silicon_but_for_the_most(silicon):
    rows = [r for r in silicon if r["macro"] == "Jia JSSC2020" and r["condition"].endswith("inputs")]
    measured = {int(r["condition"].split("b")[0]): float(r["value"]) for r in rows}
    layer, macro = Product("", "", 1, 1, 64, 128), SramMacro(input_bits=1)
    cycles = {bits: float(macro.cycles(layer, Stored(weight_bits=1, activation_bits=bits))) for bits in measured}
    faster = {bits: measured[1] / measured[bits] / (cycles[bits] / cycles[1]) for bits in measured}
    assert [faster[bits] for bits in (1, 2, 4)] == pytest.approx([1, 1, 1])
    assert faster[8] == pytest.approx(1.17, abs=0.005)


def test_a_layer_takes_the_operations_counted_by_hand():
    # 3x3 of 20 channels: 180 inputs in 3 passes of 64; 40 filters of 4 bits: 160 columns, 2 groups; 25 pixels.
    layer = Product("", "", 1, 1, 20, 40, 3, 3, 7, 7, 5, 5)
    macro, stored = SramMacro.cap_ram(), Stored(weight_bits=4, activation_bits=3)
    assert int(macro.cycles(layer, stored)) == 25 * 3 * 2
    assert int(macro.cycles(layer, dataclasses.replace(stored, activation_bits=6))) == 2 * 25 * 3 * 2
    found = macro.product(layer, stored)
    assert float(found.latency_s) == pytest.approx(150 / 35e6)
    assert float(found.energy_j) == pytest.approx(25 * 3 * 331.66e-12 * 160 / 128, rel=1e-4)
    assert int(macro.storage_bits(layer, stored)) == 180 * 160
    half = dataclasses.replace(stored, input_density=0.5)
    assert int(macro.cycles(layer, half)) == 25 * 2 * 2 and int(macro.storage_bits(layer, half)) == 90 * 160


@pytest.mark.slow
def test_keeps_the_contract_of_a_device():
    layers = Workload(
        (
            Product("conv", "conv", 1, 1, 24, 83, 3, 3, 9, 9, 7, 7),
            Product("depthwise", "depthwise", 1, 72, 72, 72, 3, 3, 13, 12, 11, 10),
            Product("dense", "dense", 5, 1, 515, 301),
        )
    )
    stored = Stored(weight_bits=5.3, activation_bits=7.3, output_density=0.7, input_density=0.63)
    check_device(SramMacro(value_share=0.3), layers, stored, gap=0.5, faster=("clock_hz",))
