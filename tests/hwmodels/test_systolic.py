"""Systolic arrays against SCALE-Sim's counts, and against what any array must obey."""

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp._workload import Product, Workload
from jaxcomp.hwmodels import Exact, Smooth, Stored
from jaxcomp.hwmodels._operands import readings
from jaxcomp.hwmodels._systolic import DATAFLOWS, Systolic
from tests.hwmodels import device_laws

TABLE = Path(__file__).resolve().parents[2] / ".." / "shared" / "reference" / "scalesim_compute_cycles.csv"
STATIONARY = {"ws": "weights", "os": "outputs", "is": "inputs"}


@pytest.fixture(scope="module")
def rows():
    if not TABLE.exists():
        pytest.skip(f"no published table at {TABLE}")
    with open(TABLE, newline="") as file:
        return list(csv.DictReader(file))


def device(row) -> Systolic:
    return Systolic(int(row["array_rows"]), int(row["array_cols"]), STATIONARY[row["dataflow"]])


def product(row) -> Product:
    """SCALE-Sim pads nothing: the pixels of its own rule are given as one column."""
    sizes = {name: int(row[name]) for name in ("cin", "cout", "filt_h", "filt_w", "ofmap_px")}
    layer = Product(
        row["layer"], None, 1, 1, sizes["cin"], sizes["cout"], sizes["filt_h"], sizes["filt_w"], out_h=sizes["ofmap_px"]
    )
    assert layer.depth == int(row["conv_window"])
    return layer


def test_cycles_equal_every_row_of_the_scale_sim_table(rows):
    found = [int(device(row).cycles(product(row))) for row in rows]
    assert found == [int(row["compute_cycles_formula"]) for row in rows] and len(rows) == 156


def test_buffer_accesses_equal_the_tables_where_the_tool_reports_them(rows):
    reported = [row for row in rows if row["ifmap_sram_reads"]]
    assert len(reported) > 70
    for row in reported:
        array, expected = device(row), int(row["ofmap_sram_writes"])
        if row["dataflow"] == "os":  # the tool counts so many writes more than there are results
            expected -= int(row["row_folds"]) * int(row["col_folds"]) * (array.rows + array.columns)
        found = array.accesses(product(row))
        assert int(found["inputs"]) == int(row["ifmap_sram_reads"])
        assert int(found["weights"]) == int(row["filter_sram_reads"])
        assert int(found["results"]) == expected


def test_utilization_equals_the_tables(rows):
    for row in rows:
        found = float(device(row).product(product(row)).utilization)
        assert 100 * found == pytest.approx(float(row["overall_util_pct"]), abs=0.01)


def test_smooth_cycles_stay_near_the_tables(rows):
    exact = np.array([float(row["compute_cycles_formula"]) for row in rows])
    smooth = np.array([float(device(row).cycles(product(row), Stored(), Smooth())) for row in rows])
    gap = np.abs(smooth / exact - 1)
    assert np.median(gap) < 1e-4 and gap.mean() < 0.01 and gap.max() < 0.25


@pytest.mark.parametrize(("stationary", "compute"), [("weights", 11199), ("outputs", 10175), ("inputs", 14207)])
def test_golden_runs_without_their_stalls(stationary, compute):
    # Total less stall cycles of the three golden runs: 52447 - 41248, 52447 - 42272 and 19984 - 5777.
    gemm = Product("gemm", None, 256, 1, 256, 128)
    assert int(Systolic(32, 32, stationary).cycles(gemm)) == compute


@given(
    p=st.integers(1, 5000),
    w=st.integers(1, 5000),
    n=st.integers(1, 5000),
    side=st.integers(1, 130),
    stationary=st.sampled_from(DATAFLOWS),
)
def test_smooth_and_exact_differ_by_less_than_a_fold_each_way(p, w, n, side, stationary):
    array, layer = Systolic(side, side + 3, stationary), Product("gemm", None, p, 1, w, n)
    along = {"weights": (w, n), "outputs": (p, n), "inputs": (w, p)}[stationary]
    a, b = -(-along[0] // side), -(-along[1] // (side + 3))
    exact, smooth = (float(array.cycles(layer, Stored(), mode)) + 1 for mode in (Exact(), Smooth()))
    low = max(a - 1, 1) / a * max(b - 1, 1) / b
    assert low * (1 - 1e-5) <= smooth / exact <= 1.0113


def test_groups_and_repetitions_run_one_after_another():
    one = Product("one", None, 1, 1, 8, 8, 3, 3, 10, 10, 10, 10)
    eight = Product("eight", None, 1, 8, 64, 64, 3, 3, 10, 10, 10, 10, repeat=5)
    array = Systolic(16, 16)
    assert int(array.cycles(eight)) == 40 * int(array.cycles(one))


def test_whole_rows_and_columns_save_cycles_and_single_zeros_do_not():
    layer, array = Product("dense", "w", 64, 1, 512, 512), Systolic(32, 32)
    whole = int(array.cycles(layer))
    assert int(array.cycles(layer, Stored(density=0.1))) == whole
    assert int(array.cycles(layer, Stored(output_density=0.5))) == (whole + 1) // 2 - 1
    assert int(array.cycles(layer, Stored(input_density=0.25))) == (whole + 1) // 4 - 1


def test_everything_moves_once_with_room_and_more_often_without():
    layer = Product("dense", "w", 256, 1, 256, 128)
    once = (256 * 256 + 256 * 128 + 256 * 128) / 1e9
    assert float(Systolic(bandwidth=1e9).product(layer).latency_terms["memory"]) == pytest.approx(once)
    tight = Systolic(bandwidth=1e9, buffer_bytes=2 * 1024)  # 1024 partial sums: tiles of 32 by 32
    moved = (256 * 256 * 4 + 256 * 128 * 8 + 256 * 128) / 1e9
    assert float(tight.product(layer).latency_terms["memory"]) == pytest.approx(moved)


@given(rows=st.integers(1, 300), depth=st.integers(1, 300), columns=st.integers(1, 300), room=st.integers(1, 20_000))
def test_no_other_tile_of_partial_sums_reads_less(rows, depth, columns, room):
    left, right = rows * depth, depth * columns
    found = readings(float(left), float(right), rows, columns, room)
    p = np.linspace(1, rows, 400)
    m = np.minimum(np.maximum(room / p, 1), columns)
    fits = p * m <= room * (1 + 1e-9)
    traffic = np.where(fits, left * columns / m + right * rows / p, np.inf)
    assert left * found[0] + right * found[1] <= traffic.min() * (1 + 1e-4)


def test_gradients_are_finite_with_boundless_memory_and_for_removed_layers():
    @jax.jit
    @jax.grad
    def slopes(stored):
        return jnp.sum(Systolic(16, 16).product(device_laws.LAYERS, stored, Smooth()).latency_s)

    for density in (0.0, 0.5, 1.0):
        slope = slopes(Stored(density=density, output_density=density, input_density=density))
        assert all(np.isfinite(x) for x in jax.tree.leaves(slope)), (density, slope)


def test_the_tpus_peak_is_the_published_one():
    tpu = Systolic.tpu()
    assert 2 * tpu.rows * tpu.columns * tpu.clock_hz == pytest.approx(92e12, rel=0.005)


def test_cycles_are_whole_numbers_above_2_to_the_24_in_double_precision():
    with jax.enable_x64(True):
        layer = Product("long", None, *map(jnp.float64, (1_000_003, 1, 4999, 3001)))
        folds = -(-4999 // 16) * -(-3001 // 16)
        assert int(Systolic(16, 16).cycles(layer)) == folds * (2 * 16 + 16 + 1_000_003 - 2) - 1


def test_an_unknown_dataflow_is_refused_by_name():
    with pytest.raises(ValueError, match="stationary is 'rows', expected one of"):
        Systolic(stationary="rows").cycles(Product("a", None, 1, 1, 1, 1))


def test_a_leaf_that_feeds_two_products_is_stored_once():
    first, again = (Product(name, "w", 1, 1, 32, 32, copies=copies) for name, copies in (("a", 1), ("b", 0)))
    twice = Workload((first, again, Product("c", None, 1, 1, 8, 8, weighted=0, copies=0)))
    assert float(Systolic().cost(twice).weight_bytes) == 32 * 32


@pytest.mark.parametrize("stationary", DATAFLOWS)
def test_signs_gradients_and_batches(stationary):
    array = Systolic(16, 12, stationary, 1e9, 2e9, 8e3, 8.0, 1e-12, 1e-13, 1e-11)
    densities = (0.1, 0.3, 0.7, 1.0)
    device_laws.check_more_never_costs_less(
        array,
        weight_bits=(1, 3, 8),
        activation_bits=(2, 5, 8),
        density=densities,
        output_density=densities,
        input_density=densities,
    )
    device_laws.check_faster_is_never_slower(array, "clock_hz", "bandwidth", "buffer_bytes")
    stored = Stored(weight_bits=5.3, input_density=0.63, output_density=0.71)
    device_laws.check_gradients(
        array, stored, "input_density", "output_density", "weight_bits", "bandwidth", "clock_hz", "rows", "columns"
    )
    device_laws.check_batched(array, "rows", [8.0, 16.0, 40.0])
