"""Operation counts of block-circulant layers, and pipelines by brute force."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp._check_device import check_device
from jaxcomp._workload import Product, Workload
from jaxcomp.hwmodels import Stored
from jaxcomp.hwmodels._fpga_circulant import FpgaCirculant
from tests.hwmodels import device_laws


@given(st.integers(1, 900), st.integers(1, 900), st.sampled_from([2, 4, 8, 16]))
def test_operations_are_those_of_the_closed_form(inputs, outputs, b):
    f, g = -(-outputs // b), -(-inputs // b)
    transforms, products = FpgaCirculant(10, 1e8, block=b).operations(Product("w", "w", 5, 1, inputs, outputs))
    assert (int(transforms), float(products)) == (f + g, f * g * (b / 2 + 1))
    stored = FpgaCirculant(10, 1e8, block=b).product(Product("w", "w", 5, 1, inputs, outputs), Stored(16.0, 16.0))
    assert float(stored.weight_bytes) == f * g * b * 2


@pytest.mark.parametrize("b", [4, 8, 16])
def test_blocks_divide_storage_by_their_side_and_halved_bits_by_two_more(b):
    layer = Workload((Product("w", "w", 1, 1, 768, 3072),))
    dense = FpgaCirculant(6840, 2e8).cost(layer, Stored(32.0, 32.0)).weight_bytes
    small = FpgaCirculant(6840, 2e8, block=b).cost(layer, Stored(16.0, 16.0)).weight_bytes
    assert float(dense / small) == 2 * b  # 16 at b = 8, as FTRANS says at most


def test_multiplications_by_hand():
    board, layer = FpgaCirculant(100.0, 1e6, block=8), Product("w", "w", 3, 1, 16, 24)
    terms = board.product(layer, Stored(16.0, 16.0)).latency_terms
    assert float(terms["transforms"]) == pytest.approx(3 * (2 + 3) * 8 * 3 / 1e8)
    assert float(terms["products"]) == pytest.approx(3 * 6 * 5 * 4 / 1e8)
    wide = board.product(layer, Stored(32.0, 16.0)).latency_s
    assert float(wide / board.product(layer, Stored(16.0, 16.0)).latency_s) == pytest.approx(2)


def test_dense_layers_and_products_of_activations_are_multiplied_out():
    scores = Product("scores", None, 128, 12, 768, 1536, weighted=0, copies=0)
    dense = FpgaCirculant(100.0, 1e6).product(Product("w", "w", 3, 1, 16, 24), Stored(16.0, 16.0))
    assert float(dense.latency_s) == pytest.approx(3 * 16 * 24 / 1e8) and float(dense.weight_bytes) == 768
    attention = FpgaCirculant(100.0, 1e6, block=8).product(scores, Stored(16.0, 16.0))
    assert float(attention.latency_s) == pytest.approx(scores.macs / 1e8) and float(attention.weight_bytes) == 0


LAYERS = Workload((Product("a", "a", 7, 1, 20, 30), Product("b", "b", 7, 1, 30, 9), Product("c", "c", 7, 1, 9, 50)))


@pytest.mark.parametrize("dsps", [3, 5, 8, 12])
def test_no_other_split_of_multipliers_has_a_shorter_interval(dsps):
    board = FpgaCirculant(dsps, 1e6, block=4)
    work = np.asarray(board.product(LAYERS.stacked, Stored(16.0, 16.0)).latency_s) * dsps
    splits = [x for x in itertools.product(range(1, dsps), repeat=3) if sum(x) <= dsps]
    best = min(max(work / np.array(x)) for x in splits)
    found = board.pipeline(LAYERS, Stored(16.0, 16.0))
    assert float(found.interval_s) == pytest.approx(best, rel=1e-5)
    assert found.dsps.sum() <= dsps and (found.dsps >= 1).all()
    assert float(found.latency_s) == pytest.approx(3 * best, rel=1e-5)


def test_with_many_multipliers_the_interval_nears_the_sum_over_layers():
    board = FpgaCirculant.vcu118(4)
    total = float(board.cost(LAYERS, Stored(16.0, 16.0)).latency_s)
    assert total <= float(board.pipeline(LAYERS, Stored(16.0, 16.0)).interval_s) * (1 + 1e-5) <= total * 1.01


def test_more_stages_than_multipliers_are_refused():
    with pytest.raises(ValueError, match="2 multipliers for 3 stages, expected one"):
        FpgaCirculant(2, 1e6).pipeline(LAYERS)


def test_fits_counts_weights_and_activations():
    cost = FpgaCirculant(10, 1e6, 1e3).cost(LAYERS, Stored(8.0))
    assert not bool(FpgaCirculant(10, 1e6, 1e3).fits(cost)) and bool(FpgaCirculant(10, 1e6, 1e4).fits(cost))


@pytest.mark.slow
def test_contract_signs_gradients_and_batches():
    board = FpgaCirculant(100.0, 1e8, block=8.0)
    workload = Workload((Product("a", "a", 7, 1, 203, 301), Product("b", None, 7, 4, 64, 80, weighted=0, copies=0)))
    check_device(board, workload, Stored(24.0, 16.0), gap=0.03)
    device_laws.check_batched(board, "block", [4.0, 8.0, 16.0])
    slope = jax.grad(lambda dsps: FpgaCirculant(dsps, 1e8, block=8.0).cost(workload).latency_s)(100.0)
    assert float(slope) == pytest.approx(-float(board.cost(workload).latency_s) / 100, rel=1e-5)
