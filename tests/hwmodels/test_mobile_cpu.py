"""Blocks timed on two phones, half of them never seen by the constants; sparsity, levels and signs."""

import csv
import dataclasses
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp._check_device import check_device
from jaxcomp._workload import Product, Workload
from jaxcomp.hwmodels import Stored
from jaxcomp.hwmodels._mobile_cpu import MobileCpu
from tests.hwmodels import device_laws

REFERENCE = Path(__file__).resolve().parents[2] / ".." / "shared" / "reference"
FLOATS = Stored(weight_bits=32.0, activation_bits=32.0)


def rows(phone: str) -> list[dict[str, str]]:
    """Of the published table, all that multiply."""
    path = REFERENCE / "mobile_cpu_block_latency_ms.csv"
    if not path.exists():
        pytest.skip(f"no published table at {path}")
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if phone in row["device"] and row["op"] != "AvgPool2D"]


def held_out(row: dict[str, str]) -> bool:
    """By a hash of its shape; the others gave the constants."""
    names = ("device", "op", "h_in", "c_in", "c_out", "expand", "kernel", "stride", "se")
    return hashlib.sha256(",".join(row[name] for name in names).encode()).digest()[0] % 2 == 1


def conv(inputs: int, outputs: int, kernel: int, before: int, after: int, groups: int = 1) -> Product:
    return Product("", "", 1, groups, inputs, outputs, kernel, kernel, before, before, after, after)


def layers(row: dict[str, str]) -> list[Product]:
    """The products of a block: expand, depthwise, squeeze, excite, project; or the one of a layer."""
    before, after, inputs, outputs = (int(row[name]) for name in ("h_in", "h_out", "c_in", "c_out"))
    if row["op"] == "Logits":
        return [conv(inputs, outputs, 1, 1, 1)]
    if row["op"] != "expanded_conv":
        return [conv(inputs, outputs, 3 if row["op"] == "Conv" else 1, before, after)]
    wide = int(row["expand"]) * (inputs if "Pixel" in row["device"] else 1)  # a ratio there, channels elsewhere
    found = [conv(inputs, wide, 1, before, before)] if wide != inputs else []
    found += [conv(wide, wide, int(row["kernel"]), before, after, wide)]
    if row["se"] == "1":
        found += [conv(wide, wide // 4, 1, 1, 1), conv(wide // 4, wide, 1, 1, 1)]
    return [*found, conv(wide, outputs, 1, after, after)]


def errors(phone: MobileCpu, table: list[dict[str, str]]) -> np.ndarray:
    """Relative, of every row: its products in one call."""
    blocks = [layers(row) for row in table]
    products = [product for block in blocks for product in block]
    names = [field.name for field in dataclasses.fields(Product) if field.name not in ("name", "path")]
    every = Product("", "", **{name: np.array([getattr(p, name) for p in products], np.float32) for name in names})
    seconds = np.zeros(len(blocks))
    owner = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    np.add.at(seconds, owner, np.asarray(phone.product(every, FLOATS).latency_s, np.float64))
    return seconds * 1e3 / np.array([float(row["mean_ms"]) for row in table]) - 1


@pytest.mark.parametrize(
    ("phone", "found", "count", "median", "mean", "most"),
    [("Pixel", MobileCpu.pixel1(), 22, 0.040, 0.099, 0.9), ("Note10", MobileCpu.note10(), 166, 0.050, 0.062, 0.41)],
)
def test_rows_never_calibrated_on_are_met_within_the_documented_errors(phone, found, count, median, mean, most):
    table = rows(phone)
    off = np.abs(errors(found, table))
    held = np.array([held_out(row) for row in table])
    assert held.sum() == count
    assert np.median(off[held]) <= median + 1e-3 and off[held].mean() <= mean + 1e-3 and off[held].max() < most
    assert np.median(off[~held]) < 0.04  # of the rows that gave the constants


def test_the_constants_are_those_of_the_calibrating_half():
    table = [row for row in rows("Note10") if not held_out(row)]
    here = MobileCpu.note10()
    names = ("macs_per_cycle", "depthwise_per_cycle", "bandwidth", "launch_s")

    def cost(**scaled):
        off = np.log1p(errors(MobileCpu(**{**vars(here), **scaled}), table))
        return 2 * np.sum(np.sqrt(1 + (off / 0.1) ** 2) - 1)  # a soft absolute value

    best = cost()
    for name in names:
        for share in (0.9, 1.1):
            assert cost(**{name: getattr(here, name) * share}) > best, f"{name} times {share} fits better"


def test_filters_shrink_the_product_and_single_zeros_help_once_kernels_use_them():
    layer, floats = Product("w", "w", 1, 1, 512, 512, 1, 1, 28, 28, 28, 28), {"weight_bits": 32.0}
    phone = MobileCpu.note10()

    def arithmetic(scheme, **densities):
        found = phone.running(scheme).product(layer, Stored(**floats, **densities))
        return float(found.latency_terms["arithmetic"])

    dense = arithmetic("dense")
    assert dense == pytest.approx(28 * 28 * 512 * 512 / (5.441 * 2.73e9))
    assert arithmetic("dense", density=0.25) == pytest.approx(dense)
    assert arithmetic("filter", output_density=0.5, density=0.5) == pytest.approx(dense / 2)
    assert arithmetic("block", density=0.25) == pytest.approx(dense * 0.25 / 0.9)
    assert arithmetic("unstructured", density=0.25) == pytest.approx(dense * 0.25 / 0.3)
    assert arithmetic("unstructured", density=0.5) == pytest.approx(dense)  # run densely
    times = [arithmetic(scheme, density=0.2) for scheme in ("block", "pattern", "unstructured", "dense")]
    assert times == sorted(times)
    assert arithmetic("block", density=0.0) == 0


def test_an_unknown_scheme_is_refused_by_name():
    with pytest.raises(ValueError, match="scheme is 'random', expected one of"):
        MobileCpu.note10().running("random")


def test_a_lower_level_is_slower_and_takes_less_energy():
    phone = MobileCpu(**{**vars(MobileCpu.note10()), "voltage_v": 1.0, "capacitance_f": 1e-9})
    work = Workload((Product("w", "w", 1, 1, 512, 512, 1, 1, 28, 28, 28, 28),))
    high, low = (phone.at(clock, volt).cost(work, FLOATS) for clock, volt in ((2e9, 1.0), (1e9, 0.8)))
    bound = {name: float(term[0]) for name, term in low.products.latency_terms.items()}
    assert float(low.latency_s - high.latency_s) == pytest.approx(bound["arithmetic"] / 2, rel=1e-3)
    assert float(high.energy_j / high.latency_s) == pytest.approx(1e-9 * 2e9)
    assert float(low.energy_j / low.latency_s) == pytest.approx(1e-9 * 0.64 * 1e9)
    assert np.isnan(MobileCpu.note10().cost(work, FLOATS).energy_j)


@pytest.mark.slow
def test_contract_signs_gradients_and_batches():
    phone = MobileCpu(2e9, 4.0, 1.5, 5e9, 2e10, 1e-6, 0.6, 0.9, 1e-9, 0.2)
    stored = Stored(24.0, 20.0, 0.21, 0.7, 0.6)
    workload = Workload((
        Product("conv", "a", 2, 1, 48, 83, 3, 3, 9, 11, 7, 9),
        Product("depthwise", "b", 1, 72, 72, 72, 3, 3, 13, 12, 11, 10),
        Product("dense", "c", 24, 1, 515, 301),
    ))  # fmt: skip
    check_device(phone, workload, stored, gap=0.011)
    device_laws.check_more_never_costs_less(phone, density=(0.1, 0.3, 0.6, 1.0), weight_bits=(4, 8, 32))
    device_laws.check_gradients(phone, stored, "density", "weight_bits", "macs_per_cycle", "bandwidth", "launch_s")


def test_gradients_are_finite_where_nothing_is_kept():
    def seconds(density):
        return jnp.sum(
            MobileCpu.note10().running("block").product(device_laws.LAYERS, Stored(density=density)).latency_s
        )

    assert np.isfinite(jax.grad(seconds)(0.0))
