"""Crossbars: ISAAC's table, FORMS' factors, arrays as the constraints count them, and what every device obeys."""

import csv
import dataclasses
from pathlib import Path

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import jaxcomp as jc
from jaxcomp._check_device import check_device
from jaxcomp._workload import Product, Workload
from jaxcomp.hwmodels import Smooth, Stored
from jaxcomp.hwmodels import stored as stored_as
from jaxcomp.hwmodels._chip import Chip
from jaxcomp.hwmodels._crossbar import Crossbar, effective_input_cycles

REFERENCE = Path(__file__).resolve().parents[2] / ".." / "shared" / "reference"
WIDE = Product("layer", "layer/kernel", 1, 1, 2048, 1024)
LAYERS = Workload(
    (
        Product("conv", "conv", 1, 1, 24, 83, 3, 3, 9, 9, 7, 7),
        Product("depthwise", "depthwise", 1, 72, 72, 72, 3, 3, 13, 12, 11, 10),
        Product("dense", "dense", 5, 1, 515, 301),
    )
)

jitted = jax.jit(effective_input_cycles, static_argnums=1)


def table(name: str) -> list[dict[str, str]]:
    path = REFERENCE / name
    if not path.exists():
        pytest.skip(f"no published table at {path}")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_power_and_area_of_isaac_are_the_totals_of_its_table():
    rows = {row["component"]: row for row in table("isaac_power_area.csv")}
    chip = Chip.isaac()
    totals = {
        "total of one IMA": (chip.group_power_w, chip.group_area_mm2),
        "12 IMAs": (12 * chip.group_power_w, 12 * chip.group_area_mm2),
        "tile total": (chip.tile_power_w, chip.tile_area_mm2),
        "168 tiles": (168 * chip.tile_power_w, 168 * chip.tile_area_mm2),
        "chip total": (chip.power_w, chip.area_mm2),
    }
    for name, (power, area) in totals.items():
        assert power * 1e3 == pytest.approx(float(rows[name]["power_mW_all"]), rel=0.005), name
        assert area == pytest.approx(float(rows[name]["area_mm2_all"]), rel=0.005), name
    parts = [
        row for row in table("isaac_power_area.csv") if row["level"] in ("ima", "tile") and "sum" not in row["spec"]
    ]
    ours = sorted(part[0] * 1e3 for part in (chip.group | {f"tile {k}": v for k, v in chip.tile.items()}).values())
    theirs = sorted(float(row["power_mW_all"]) for row in parts if row["component"] not in ("12 IMAs", "tile total"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_power_and_area_are_linear_in_tiles():
    one, two, three = (dataclasses.replace(Chip.isaac(), tiles=tiles) for tiles in (10, 20, 30))
    assert two.power_w - one.power_w == pytest.approx(three.power_w - two.power_w) == pytest.approx(3.2981)
    assert two.area_mm2 - one.area_mm2 == pytest.approx(three.area_mm2 - two.area_mm2) == pytest.approx(3.7234)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_arrays_of_other_sizes_take_what_puma_gives_them(size):
    rows = [r for r in table("puma_component_constants.csv") if r["component"] == "crossbar"]
    (row,) = [r for r in rows if float(r["size"]) == size]
    power, area = (part / 8 for part in Chip.isaac(size, size).group["arrays"])
    assert power * 1e3 == pytest.approx(float(row["dynamic_power_mW"]))
    assert area == pytest.approx(float(row["area_mm2"]))


def test_isaac_peaks_at_its_published_throughput():
    isaac = Crossbar.isaac()
    assert float(isaac.peak_ops()) / 1e12 == pytest.approx(41.3, rel=1e-3)
    assert float(isaac.peak_ops()) / 1e9 / isaac.area_mm2 == pytest.approx(479, rel=0.01)
    assert float(isaac.peak_ops(8, 16)) == pytest.approx(2 * float(isaac.peak_ops()))


def test_a_layer_that_fills_the_chip_runs_at_its_peak():
    isaac = dataclasses.replace(Crossbar.isaac(), chip=dataclasses.replace(Chip.isaac(), tiles=64))  # 6144 arrays
    stored = Stored(weight_bits=16, activation_bits=16)
    layer = Product("", "", 10, 1, 128 * 64, 16 * 96)
    assert int(isaac.crossbars(layer, stored)) == 6144
    found = isaac.product(layer, stored)
    assert 2 * layer.macs / float(found.latency_s) == pytest.approx(float(isaac.peak_ops()), rel=1e-5)
    assert float(found.utilization) == pytest.approx(1)


def test_conversions_at_full_use_take_the_power_of_the_table_but_for_the_rates_that_differ():
    stored, layer = Stored(weight_bits=16, activation_bits=16), Product("", "", 10, 1, 128, 128 // 8)
    found = Crossbar.isaac().product(layer, stored)
    watts = float(found.energy_terms["conversion"] / found.latency_s)
    assert watts * 8 == pytest.approx(16e-3 * 1.28 / 1.2, rel=0.01)
    assert float(found.energy_terms["cells"] / found.latency_s) * 8 == pytest.approx(2.4e-3, rel=1e-4)


@pytest.mark.parametrize(("fragment", "nanoseconds"), [(4, 488), (8, 244), (16, 122)])
def test_an_array_of_forms_takes_an_input_bit_in_the_derived_time(fragment, nanoseconds):
    layer = Product("", "", 1, 1, 128, 32)
    found = Crossbar.forms(fragment).product(layer, Stored(activation_bits=1)).latency_s
    assert float(found) * 1e9 == pytest.approx(nanoseconds, abs=0.5)


def test_bits_that_converters_need():
    assert float(Crossbar.isaac().converter_bits) == 8
    assert [float(Crossbar.forms(fragment).converter_bits) for fragment in (4, 8, 16)] == [3, 4, 5]


def test_quantization_and_polarization_divide_arrays_by_4_and_2():
    full, quantized = Stored(weight_bits=32, activation_bits=16), Stored(weight_bits=8, activation_bits=16)
    dual, polarized = Crossbar.forms(signs=2), Crossbar.forms()
    counts = [int(d.crossbars(WIDE, s)) for d, s in ((dual, full), (dual, quantized), (polarized, quantized))]
    assert counts[0] == 4 * counts[1] == 8 * counts[2]
    assert counts[2] == 16 * 32
    assert 23.18 * counts[0] / counts[2] == pytest.approx(185.44)  # with the published pruning


@pytest.mark.parametrize(("bits", "arrays"), [(9, 4), (5, 2), (4, 2), (6, 4)])
def test_memristor_blocks_take_as_many_arrays_as_published(bits, arrays):
    layer = Product("", "", 1, 1, 32, 32)
    assert int(Crossbar.memristor().crossbars(layer, Stored(weight_bits=bits))) == arrays


def test_pruning_in_whole_arrays_saves_its_rate_and_other_pruning_less():
    memristor, before = Crossbar.memristor(), int(Crossbar.memristor().crossbars(WIDE, Stored(weight_bits=9)))
    aligned = Stored(weight_bits=9, output_density=0.25, input_density=0.5)
    assert int(memristor.crossbars(WIDE, aligned)) / before == pytest.approx(1 / 8)
    assert int(memristor.crossbars(WIDE, dataclasses.replace(aligned, weight_bits=5))) / before == pytest.approx(1 / 16)
    ragged = dataclasses.replace(aligned, output_density=0.26)
    assert int(memristor.crossbars(WIDE, ragged)) / before > 0.26 * 0.5


@given(inputs=st.integers(1, 300), outputs=st.integers(1, 260), bits=st.sampled_from([2, 4, 8, 16]))
def test_arrays_are_those_that_the_constraints_count(inputs, outputs, bits):
    kernel = jnp.asarray(np.outer(np.arange(300) < inputs, np.arange(260) < outputs), jnp.float32)
    found = Stored(
        weight_bits=float(bits), input_density=np.float32(inputs / 300), output_density=np.float32(outputs / 260)
    )
    counted = Crossbar.isaac().crossbars(Product("", "", 1, 1, 300, 260), found)
    assert int(counted) == int(jc.crossbars(kernel, 128, 128 // (bits // 2)))


def test_densities_that_float32_rounds_up_take_no_array_more():
    layer = Product("", "", 1, 1, 302, 32)
    assert int(Crossbar.memristor().crossbars(layer, Stored(weight_bits=5, input_density=np.float32(192 / 302)))) == 12


@pytest.mark.parametrize("kept", [(300, 260), (137, 61), (128, 128), (256, 64)])
def test_what_is_kept_of_a_compacted_leaf_takes_its_arrays(kept):
    kernel = jnp.asarray(np.outer(np.arange(300) < kept[0], np.arange(260) < kept[1]), jnp.float32)
    layer = Workload((Product("layer", "layer/kernel", 1, 1, 300, 260),))
    footprint = jc.Compacted(jc.Polarized(jc.fragments(8))).fit(kernel).footprint(kernel)
    found = stored_as(layer, {"layer/kernel": footprint})
    found = dataclasses.replace(found, weight_bits=8.0)
    assert int(Crossbar.forms().crossbars(layer.stacked, found)[0]) == int(jc.crossbars(kernel, 128, 32))


@pytest.mark.parametrize("fragment", [1, 4, 8, 128])
def test_effective_input_cycles_are_the_bit_lengths_of_the_largest_inputs(fragment):
    x = np.random.default_rng(0).geometric(1e-3, size=(5, 43)) - 1
    found = jitted(jnp.asarray(x), fragment)
    expected = [[max(int(v) for v in row[i : i + fragment]).bit_length() for i in range(0, 43, fragment)] for row in x]
    np.testing.assert_array_equal(found, expected)


@given(st.integers(0, 23))
def test_effective_input_cycles_are_exact_around_powers_of_two(bits):
    x = jnp.asarray([[2**bits - 1], [2**bits]])
    assert effective_input_cycles(x, 1).ravel().tolist() == [bits, bits + 1]


def test_smooth_effective_input_cycles_stay_in_their_bounds_and_have_gradients():
    x = jnp.asarray(np.random.default_rng(1).integers(0, 2**16, size=(50, 64)), jnp.float32)
    smoothly = jax.jit(lambda x: effective_input_cycles(x, 8, Smooth()))
    exact, smooth = effective_input_cycles(x, 8), smoothly(x)
    assert (smooth > exact - 1).all() and (smooth < exact + 3 / 64 + 1e-5).all()
    slopes = jax.grad(lambda x: smoothly(x).sum())(x)
    assert (slopes >= 0).all() and (slopes.reshape(50, 8, 8).sum(-1) > 0).all()
    with pytest.raises(ValueError, match="at least one input, found 0"):
        effective_input_cycles(x, 0)


def test_finer_fragments_skip_more_cycles():
    x = jnp.maximum(jax.random.normal(jax.random.key(0), (1000, 128)), 0)  # full scale is 5 sigma, as the page has it
    levels = jnp.round(x / 5 * (2**16 - 1))
    found = [float(jitted(levels, m).mean()) for m in (4, 8, 16, 128)]
    np.testing.assert_allclose(found, [13.1, 14.5, 14.9, 15.5], atol=0.35)
    assert found == sorted(found)


def test_cycles_that_are_skipped_save_time_and_conversions():
    stored, forms = Stored(activation_bits=16), Crossbar.forms()
    all_of_them, some = (dataclasses.replace(forms, input_share=s).product(WIDE, stored) for s in (1.0, 0.8))
    assert float(some.latency_s / all_of_them.latency_s) == pytest.approx(0.8)
    for name in ("conversion", "drivers", "cells"):
        assert float(some.energy_terms[name] / all_of_them.energy_terms[name]) == pytest.approx(0.8)


@pytest.mark.parametrize(
    "device",
    [
        Crossbar.forms(),
        pytest.param(Crossbar.isaac(), marks=pytest.mark.slow),
        pytest.param(Crossbar.memristor(), marks=pytest.mark.slow),
    ],
    ids=["forms", "isaac", "memristor"],
)
@pytest.mark.slow
def test_keeps_the_contract_of_a_device(device):
    stored = Stored(weight_bits=5.3, activation_bits=7.3, output_density=0.7, input_density=0.63)
    check_device(device, LAYERS, stored, gap=0.5, faster=("rate_hz", "converters", "replicas"))
