"""Arrays under a memory hierarchy against Timeloop's figures, and against what any hierarchy must obey."""

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from jaxcomp._check_device import check_device
from jaxcomp._workload import Product, Workload
from jaxcomp.hwmodels import Exact, Smooth, Stored
from jaxcomp.hwmodels._level import Level
from jaxcomp.hwmodels._mapping import Mapping
from jaxcomp.hwmodels._reuse import Reuse
from jaxcomp.hwmodels._spatial import Spatial

TABLE = Path(__file__).resolve().parents[2] / ".." / "shared" / "reference" / "dosa_timeloop_gemmini_sample.csv"
LAYERS = Workload(
    (
        Product("conv", "w", 1, 1, 24, 83, 3, 3, 9, 9, 7, 7),
        Product("dense", "v", 5, 1, 515, 301),
        Product("depthwise", "u", 1, 72, 72, 72, 3, 3, 13, 12, 11, 10),
    )
)
MAPPING = Mapping.parse("L3[WIO] K8 P7 N2 C3 S2 - L2[WI] N1 K4X - L1[O] R3 S2 Q3 C6X - L0[W] P4")
CONV = Product("conv", "w", 1, 1, 16, 32, 3, 3, 30, 30, 28, 28)
FITTING = Mapping.parse("L3[WIO] K8 P7 - L2[WI] N1 K4X - L1[O] R3 S3 Q28 C16X - L0[W] P4")


@pytest.fixture(scope="module")
def table():
    """The table's columns, its rows as one batch of devices with mappings, and what they cost."""
    if not TABLE.exists():
        pytest.skip(f"no published table at {TABLE}")
    with open(TABLE, newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = [name for name in rows[0] if name not in ("mapping", "shape", "source")]
    columns = {name: np.array([float(row[name]) for row in rows], np.float32) for name in numbers}
    mappings = [Mapping.parse(row["mapping"]) for row in rows]
    device = Spatial.gemmini(
        columns["meshX"],
        columns["mem1_entries"] * 4 / 1024,
        columns["mem2_entries"] / 1024,
        jax.tree.map(lambda *x: np.stack(x), *mappings),
    )
    layers = Product("", None, columns["N"], 1, columns["C"], columns["K"], columns["R"], columns["S"])
    layers = jax.tree.map(jnp.asarray, layers)
    layers = Product(
        **vars(layers) | dict(out_h=columns["P"], out_w=columns["Q"], stride=columns["Hstride"], weighted=1)
    )
    texts = [row["mapping"] for row in rows]
    return columns, device, layers, texts, jax.jit(lambda d, p: (d.cycles(p), d.product(p)))(device, layers)


def test_cycles_are_timeloops(table):
    columns, _, _, _, (cycles, _) = table
    error = np.abs(np.asarray(cycles) / columns["cycles"] - 1)
    assert len(error) == 2500 and np.median(error) < 1e-6 and error.mean() < 1e-4 and error.max() < 0.015
    assert spearmanr(cycles, columns["cycles"]).statistic > 0.99999
    assert np.mean(error < 1e-6) > 0.98


def test_energy_is_timeloops(table):
    columns, _, _, _, (_, cost) = table
    error = np.abs(np.asarray(cost.energy_j) * 1e6 / columns["energy_uJ"] - 1)
    assert np.median(error) < 2e-4 and error.mean() < 0.0021 and error.max() < 0.15
    assert np.mean(error > 0.01) < 0.05


def test_every_level_gets_an_energy_that_is_not_negative(table):
    _, device, _, _, (_, cost) = table
    assert set(cost.energy_terms) == {"arithmetic", *(level.name for level in device.levels)}
    assert all((np.asarray(term) >= 0).all() for term in cost.energy_terms.values())


def test_no_layer_takes_less_than_its_steps(table):
    columns, device, layers, _, (cycles, cost) = table
    steps = Reuse.of(device.mapping, layers).iterations
    assert (np.asarray(cycles) >= np.asarray(steps)).all() and (columns["cycles"] >= np.asarray(steps) * 0.999999).all()
    assert np.mean(np.asarray(cycles) == np.asarray(steps)) == pytest.approx(0.286, abs=0.01)  # as in the table
    assert (np.asarray(cost.utilization) <= 1 + 1e-6).all()


def test_mappings_of_the_table_fit_its_designs_and_are_written_as_they_were_read(table):
    _, device, layers, texts, _ = table
    assert np.asarray(jax.jit(Spatial.fits)(device, layers)).all()
    for i in range(0, 2500, 83):
        mapping, layer = (jax.tree.map(lambda x, i=i: x[i] if np.ndim(x) else x, x) for x in (device.mapping, layers))
        assert mapping.text(layer, device.keeps) == texts[i]


def test_smooth_cycles_lie_above_the_tables_mappings_by_the_documented_bound(table):
    _, device, layers, _, (cycles, _) = table
    ratio = np.asarray(jax.jit(lambda d, p: d.cycles(p, mode=Smooth()))(device, layers) / cycles)
    assert ratio.min() > 1 - 1e-5 and ratio.max() < 5 ** (1 / 64)


@pytest.mark.slow
def test_the_closed_form_fits_every_design_of_the_table(table):
    columns, device, layers, _, _ = table
    own = Spatial(device.levels, mac_pj=device.mac_pj)
    assert np.asarray(jax.jit(Spatial.fits)(own, layers)).all()
    ratio = np.asarray(jax.jit(lambda d, p: d.product(p).energy_j)(own, layers)) * 1e6 / columns["energy_uJ"]
    assert np.median(ratio) < 0.5  # the table's mappings are random samples


@given(
    sizes=st.tuples(*[st.integers(1, 90)] * 4, st.integers(1, 7)),
    side=st.integers(1, 40),
    kib=st.floats(0.125, 64),
    bits=st.sampled_from([2.0, 8.0]),
)
def test_the_closed_form_fits_and_covers_the_layer(sizes, side, kib, bits):
    inputs, outputs, out_h, out_w, kernel = sizes
    layer = Product("conv", "w", 1, 1, inputs, outputs, kernel, kernel, out_h=out_h, out_w=out_w, stride=2)
    device, stored = Spatial.gemmini(float(side), kib / 16, kib + 1), Stored(weight_bits=bits)
    extents, fits = _covered(device, layer, stored)
    assert (np.asarray(extents) >= [1, outputs, inputs, out_h, out_w, kernel, kernel]).all() and fits


@jax.jit
def _covered(device, layer, stored):
    return Reuse.of(device.mapped(layer, stored), layer).extents(3), device.fits(layer, stored)


def test_the_least_hardware_that_fits_is_what_the_mappings_take():
    mappings = jax.tree.map(lambda *x: np.stack(x), FITTING, MAPPING)
    two = Workload((CONV, LAYERS.products[0])).stacked
    device = Spatial.gemmini(64.0, 1024.0, 1024.0, mappings)
    fitted = device.fitted(two)
    kib = {level.name: float(level.capacity_kib) * 1024 for level in fitted.levels}
    assert kib["accumulators"] == 4 * 28 * 4  # four rows of 28 partial sums of 32 bits
    assert kib["scratchpad"] == 16 * 4 * 9 + 16 * 6 * 30  # weights; inputs under 4 x 28 outputs
    assert [float(level.fanout) for level in fitted.levels[1:3]] == [16, 4]
    assert fitted.fits(two).all()
    smaller = jax.tree.map(lambda x: x * 0.99, fitted.levels)
    assert not Spatial(smaller, mappings).fits(two).all()


def test_known_costs_of_one_mapping():
    device = Spatial.gemmini(16.0, 1.0, 128.0, FITTING)
    cost = device.product(CONV)
    macs, outputs = 28 * 28 * 9 * 16 * 32, 32 * 28 * 28
    weights = 16 * 32 * 9  # once: they stay while blocks of rows go by
    inputs = (6 + 6 * 4) * 30 * 16 * 8  # rows slide; all of it again for every block of outputs
    assert float(cost.latency_terms["compute"]) * 1e9 == pytest.approx(macs / 64)
    assert float(cost.latency_terms["dram"]) * 1e9 == pytest.approx((weights + inputs + outputs) / 8)
    assert float(cost.energy_terms["dram"]) == pytest.approx((weights + inputs + outputs) * 100e-12)
    assert float(cost.energy_terms["arithmetic"]) == pytest.approx(macs * 0.5608e-12)
    assert float(cost.weight_bytes) == 16 * 32 * 9


def test_groups_and_repetitions_run_one_after_another():
    one = Product("one", None, 1, 1, 8, 8, 3, 3, 12, 12, 10, 10)
    eight = Product("eight", None, 1, 8, 64, 64, 3, 3, 12, 12, 10, 10, repeat=5)
    device = Spatial.gemmini()
    assert float(device.cycles(eight)) == 40 * float(device.cycles(one))
    assert float(device.product(eight).energy_j) == pytest.approx(40 * float(device.product(one).energy_j))


def test_compression_makes_words_smaller_and_removed_filters_steps_fewer():
    device = Spatial.gemmini(16.0, 1.0, 128.0, FITTING)

    def terms(**numbers):
        return device.product(CONV, Stored(**numbers)).latency_terms

    whole, half, pruned = terms(), terms(weight_bits=4.0), terms(output_density=0.5, density=0.5)
    assert float(half["compute"]) == float(whole["compute"]) == 2 * float(pruned["compute"])
    weights = 16 * 32 * 9 / 8 * 1e-9
    assert float(whole["dram"] - half["dram"]) == pytest.approx(weights / 2, rel=1e-4)
    assert float(whole["dram"]) == pytest.approx(2 * float(pruned["dram"]))


def test_a_mapping_with_other_levels_is_refused():
    mapping = Mapping.parse("L1[WIO] K2 - L0[W] P4")
    with pytest.raises(ValueError, match=r"2 levels, expected 4.*'registers', 'accumulators', 'scratchpad', 'dram'"):
        Spatial.gemmini(mapping=mapping).product(CONV)


def test_one_program_serves_many_mappings_and_designs():
    traces = 0

    def edp(mapping, side, layer):
        nonlocal traces
        traces += 1
        cost = Spatial.gemmini(side, mapping=mapping).product(layer)
        return cost.latency_s * cost.energy_j

    mappings = jax.tree.map(lambda *x: np.stack(x), FITTING, MAPPING)
    both = jax.jit(jax.vmap(edp, (0, 0, None)))
    found = both(mappings, jnp.array([16.0, 8.0]), CONV)
    both(jax.tree.map(np.flip, mappings), jnp.array([4.0, 8.0]), CONV)
    assert traces == 1
    np.testing.assert_allclose(found, [edp(FITTING, 16.0, CONV), edp(MAPPING, 8.0, CONV)], rtol=1e-5)


@pytest.mark.slow
def test_real_factors_have_derivatives_by_which_a_search_can_go():
    mode = Smooth(width=10.0)  # rounding up is nearly the identity

    def log_edp(factors):
        mapping = Mapping(jnp.exp(factors), FITTING.spatial, FITTING.importance)
        cost = Spatial.gemmini(16.0, 1.0, 128.0, mapping).product(CONV, mode=mode)
        return jnp.log(cost.latency_s * cost.energy_j)

    start = jnp.log(jnp.asarray(FITTING.temporal) + 1.2)
    slopes = jax.jit(jax.grad(log_edp))(start)
    away = np.random.default_rng(0).normal(size=(5, *start.shape)).astype(np.float32)
    value = jax.jit(log_edp)
    for direction in away:
        difference = (value(start + 1e-3 * direction) - value(start - 1e-3 * direction)) / 2e-3
        assert float(jnp.sum(slopes * direction)) == pytest.approx(float(difference), rel=1e-2, abs=5e-3)
    lower = value(start - 0.05 * slopes / jnp.linalg.norm(slopes))
    assert np.isfinite(slopes).all() and float(lower) < float(value(start))


def test_energy_falls_with_a_smaller_memory_by_the_law_of_its_level():
    slope = jax.grad(lambda kib: Spatial.gemmini(16.0, 1.0, kib, FITTING).product(CONV).energy_j)(128.0)
    words = Spatial.gemmini(16.0, 1.0, 128.0, FITTING).product(CONV).latency_terms["scratchpad"] * 1e9 * 32
    assert float(slope) == pytest.approx(float(words) * 0.02513e-12, rel=1e-4)


@pytest.mark.parametrize("mode", [Exact(), Smooth()])
def test_a_hierarchy_of_the_users_own(mode):
    levels = (
        Level("local", "WIO", 1.0, 0.5, access_pj=1.68, grows="RSQ"),
        Level("shared", "WIO", 64.0, 64.0, 16.0, 18.61, unrolls="KC", grows="PCK"),
        Level("outside", "WIO", words_per_cycle=4.0, access_pj=200.0),
    )
    device = Spatial(levels, mac_pj=1.0)
    assert device.fits(CONV)
    cost = device.product(CONV, mode=mode)
    assert float(cost.utilization) == pytest.approx(CONV.macs / float(device.cycles(CONV, mode=mode)) / 64)
    assert float(device.mapped(CONV).spatial.prod()) == 64


@pytest.mark.slow
def test_the_contract_of_devices_holds_for_a_given_mapping():
    stored = Stored(weight_bits=5.0, output_density=0.7, input_density=0.93)
    check_device(Spatial.gemmini(8.0, mapping=MAPPING), LAYERS, stored, gap=0.5)
