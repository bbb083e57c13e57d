"""Converters: published constants by the number of bits, and the survey's regression."""

import csv
from pathlib import Path

import jax
import pytest

from jaxcomp.hwmodels._adc import Converter, needed_bits, survey

REFERENCE = Path(__file__).resolve().parents[2] / ".." / "shared" / "reference"


def table(name: str) -> list[dict[str, str]]:
    path = REFERENCE / name
    if not path.exists():
        pytest.skip(f"no published table at {path}")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_law_set_at_4_and_8_bits_gives_the_other_widths_of_isaac():
    rows = [row for row in table("isaac_forms_component_actions.csv") if row["component"] == "ISAAC ADC"]
    assert sorted(int(row["resolution_or_width"]) for row in rows) == [4, 5, 6, 7, 8, 9, 10]
    for row in rows:
        bits = int(row["resolution_or_width"])
        assert Converter.isaac().energy_j(bits) * 1e12 == pytest.approx(float(row["energy_pJ_per_action"]), rel=0.004)
        assert Converter.isaac().area_um2(bits) == pytest.approx(float(row["area_um2"]), rel=1e-4)


def test_the_converter_of_forms_is_the_published_one_at_4_bits():
    (row,) = [row for row in table("isaac_forms_component_actions.csv") if row["component"] == "FORMS ADC"]
    assert Converter.forms().energy_j(4) * 1e12 == pytest.approx(float(row["energy_pJ_per_action"]), rel=0.002)
    assert Converter.forms().area_um2(4) == pytest.approx(float(row["area_um2"]), rel=1e-4)


def test_the_survey_has_the_coefficients_of_the_table_and_misses_isaac_by_what_is_said():
    found = {row["coefficient"]: float(row["value"]) for row in table("adc_survey_model.csv")}
    caps = [found[f"foms_cap_dB_enob_{bits}"] for bits in range(18)]
    assert caps[17] - caps[0] == pytest.approx(17 * 3.2205, rel=1e-4)
    energy, area = survey(8, 32, 1.2e9)
    assert float(energy) * 1e12 == pytest.approx(1.846, abs=5e-4) and float(energy) * 1e12 / 1.667 > 1.1
    assert float(area) == pytest.approx(6311, abs=1) and float(area) / 1200 > 5
    energy, area = survey(7, 65, 35e6)
    assert float(energy) * 1e12 == pytest.approx(4.97, abs=0.005) and float(area) == pytest.approx(9056, abs=1)


def test_more_bits_of_a_converter_cost_more_and_noise_makes_them_dear():
    fine, coarse = (Converter.switched_capacitor().energy_j(bits) for bits in (7, 5))
    assert fine > coarse
    steep = [
        Converter.switched_capacitor().energy_j(bits + 1.0) / Converter.switched_capacitor().energy_j(bits)
        for bits in (6.0, 14.0)
    ]
    assert steep[0] < 1.3 and steep[1] > 3.5  # logic at few bits, four times a bit at many
    slope = jax.grad(Converter.isaac().energy_j)(8.0)
    assert float(slope) * 1e12 == pytest.approx((1.969 - 1.42) / 2, rel=0.1)


@pytest.mark.parametrize(("rows", "cell_bits", "input_bits", "bits"), [(128, 2, 1, 8), (8, 2, 1, 4), (64, 1, 3, 8)])
def test_bits_that_a_read_needs(rows, cell_bits, input_bits, bits):
    assert float(needed_bits(rows, cell_bits, input_bits)) == bits
    assert float(needed_bits(rows, cell_bits, input_bits, flipped=False)) == bits + 1
