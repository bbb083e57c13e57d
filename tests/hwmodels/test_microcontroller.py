"""MCUNet's counts of memory, its published networks, and what fits."""

import csv
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp import trace
from jaxcomp._check_device import check_device
from jaxcomp._workload import Product, Tensor, Workload
from jaxcomp.hwmodels import Smooth, Stored
from jaxcomp.hwmodels._first_fit import first_fit
from jaxcomp.hwmodels._microcontroller import Microcontroller
from tests.networks import MobileNetV2, image, variables

REFERENCE = Path(__file__).resolve().parents[2] / ".." / "shared" / "reference"


def table(name: str) -> list[dict[str, str]]:
    path = REFERENCE / name
    if not path.exists():
        pytest.skip(f"no published table at {path}")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def held_out(name: str) -> bool:
    """By a hash of the network's name; the others gave the constants."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 1


@pytest.fixture(scope="module", params=[(0.35, 144, 448, 311_040, 290_304), (0.3, 64, 384, 61_440, 57_344)], ids=str)
def mobilenet(request):
    factor, pixels, last, naive, in_place = request.param
    network = MobileNetV2(factor, last)
    return trace(network.apply, variables(network, image(pixels)), image(pixels)), naive, in_place


def test_the_authors_counts_are_met_exactly(mobilenet):
    workload, naive, in_place = mobilenet
    assert int(Microcontroller.f746().cost(workload).activation_bytes) == naive
    assert int(Microcontroller.f746(in_place=True).cost(workload).activation_bytes) == in_place
    strict = Microcontroller.f746(strict=True)
    assert strict.live(workload).tolist() == workload.live
    lower = Microcontroller.f746().live(workload)
    assert (lower < jnp.array(workload.live)).any()  # where a residual waits


def test_one_buffer_for_all_tensors_is_no_larger_than_what_lives(mobilenet):
    workload, naive, _ = mobilenet
    assert first_fit(workload.tensors).peak == max(workload.live) == naive


def test_latency_and_flash_of_networks_that_gave_no_constant():
    zoo = {row["net"]: row for row in table("mcunet_model_zoo.csv")}
    measured = {
        row["net"]: float(row["value"])
        for row in table("mcu_engine_measurements.csv")
        if row["engine"] == "TinyEngine" and row["quantity"] == "latency" and row["net"] in zoo
    }
    chip = Microcontroller.h743()
    off = {}
    for name, ms in measured.items():
        macs = Product("net", "w", 1, 1, float(zoo[name]["macs_M"]) * 1e6, 1)
        off[name] = abs(float(chip.product(macs).latency_s) * 1e3 / ms - 1)
    held = [off[name] for name in off if held_out(name)]
    assert len(held) == 5 and np.median(held) <= 0.07 and max(held) <= 0.21
    flash = {
        name: abs((float(row["params_M"]) * 1e3 + chip.code_bytes / 1e3) / float(row["flash_kB"]) - 1)
        for name, row in zoo.items()
        if held_out(name)
    }
    assert len(flash) == 6 and np.median(list(flash.values())) <= 0.066 and max(flash.values()) <= 0.152


def test_published_networks_fit_where_they_were_made_to_fit():
    chips = {"F412": Microcontroller.f412(), "F746": Microcontroller.f746(), "H743": Microcontroller.h743()}
    fits = {}
    for row in table("mcunet_model_zoo.csv"):
        sram, flash = float(row["sram_kB"]) * 1e3, float(row["flash_kB"]) * 1e3
        fits[row["net"]] = [
            name for name, chip in chips.items() if sram <= chip.sram_bytes and flash <= chip.flash_bytes
        ]
    assert fits["mcunet-in4"] == ["H743"]  # 512 kB of SRAM and 2 MB of Flash
    assert fits["mcunet-in3"] == ["F746", "H743"]
    assert fits["mcunet-in2"] == ["F412", "F746", "H743"]


# x (60) -> expand 0 (120) -> depthwise 1 (120) -> project 2 (60, + x): a residual that dies between 2 and 3.
LAYERS = (
    Product("expand", "a", 1, 1, 6, 12, 1, 1, 5, 2, 5, 2),
    Product("depthwise", "b", 1, 12, 12, 12, 3, 3, 5, 2, 5, 2),
    Product("project", "c", 1, 1, 12, 6, 1, 1, 5, 2, 5, 2),
)
TENSORS = (
    Tensor("x", 60, -1, 2.5, 0),
    Tensor("h", 120, 0, 1, 1),
    Tensor("g", 120, 1, 2, 2),
    Tensor("y", 60, 2, 3),
)
BLOCK = Workload(LAYERS, TENSORS)


def test_a_residual_waits_through_the_depthwise_layer_and_is_left_out_at_the_projection():
    assert Microcontroller.f746().live(BLOCK).tolist() == [180, 300, 180]
    assert Microcontroller.f746(strict=True).live(BLOCK).tolist() == BLOCK.live == [180, 300, 240]


def test_in_place_a_depthwise_layer_takes_a_plane_beside_its_input():
    assert Microcontroller.f746(in_place=True).live(BLOCK)[1] == 60 + 120 + 10
    # Nothing is overwritten that is read again.
    kept = Workload(LAYERS, (TENSORS[0], Tensor("h", 120, 0, 2, 2), *TENSORS[2:]))
    assert Microcontroller.f746(in_place=True).live(kept)[1] == 300


def test_a_cost_may_be_compiled_with_the_workload_as_an_argument():
    chip = Microcontroller.f746(in_place=True)
    assert float(jax.jit(chip.cost)(BLOCK).activation_bytes) == float(chip.cost(BLOCK).activation_bytes) == 190


def test_fewer_bits_save_memory_and_flash_decides_as_much_as_sram():
    chip = Microcontroller(300.0, 400.0, 1e8, 1.0, 0.5)
    assert float(chip.cost(BLOCK, Stored(activation_bits=4.0)).activation_bytes) == 150
    assert bool(chip.fits(chip.cost(BLOCK)))
    for field in ("sram_bytes", "flash_bytes"):
        small = Microcontroller(**{**vars(chip), field: 200.0})
        assert not bool(small.fits(small.cost(BLOCK)))
    assert not bool(Microcontroller(**{**vars(chip), "code_bytes": 200.0}).fits(chip.cost(BLOCK)))


def test_depthwise_layers_have_their_own_rate():
    cycles = Microcontroller(1.0, 1.0, 1e8, 1.0, 0.5).cycles(BLOCK.stacked)
    np.testing.assert_allclose(cycles, [10 * 72, 2 * 10 * 12 * 9, 10 * 72])


def test_the_smooth_peak_is_above_the_exact_one_and_has_a_slope_by_bits():
    chip = Microcontroller.f746()
    exact, smooth = (float(chip.cost(BLOCK, Stored(), *mode).activation_bytes) for mode in ((), (Smooth(),)))
    assert exact <= smooth <= exact * len(BLOCK) ** (1 / 64)
    slope = jax.grad(lambda bits: chip.cost(BLOCK, Stored(activation_bits=bits), Smooth()).activation_bytes)
    np.testing.assert_allclose(slope(jnp.array([8.0, 8.0, 8.0])), [0, 300 / 8, 0], atol=1e-3)


def test_contract_signs_gradients_and_batches():
    chip = Microcontroller(3e5, 1e6, 1e8, 1.0, 0.5, 1e-7)
    check_device(chip, BLOCK, Stored(5.0, 6.0, 0.3, 0.5, 0.7), gap=0.0)
