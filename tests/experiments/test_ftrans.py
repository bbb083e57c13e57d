"""The block-circulant transformer: forms that keep what they say, text as it is cut, verdicts that follow."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcomp as jc
from experiments import _ftrans_kernels as kernels
from experiments import _ftrans_latency as latency
from experiments import _ftrans_storage as storage
from experiments import _ftrans_study as study
from experiments import ftrans
from experiments.__main__ import main
from experiments._ftrans_network import Transformer
from experiments._ftrans_study import Outcome
from experiments._ftrans_text import windows

SIDE = 4


@pytest.fixture(scope="module")
def kernel():
    return jnp.asarray(np.random.default_rng(0).normal(size=(24, 8)), jnp.float32)


@pytest.fixture(scope="module")
def params():
    """Two matrices of a network, whose ranks of as many numbers as blocks of side 4 are whole, and its head."""
    rng = np.random.default_rng(2)

    def dense(inputs, outputs):
        kernel, bias = rng.normal(size=(inputs, outputs)), rng.normal(size=outputs)
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), {"kernel": kernel, "bias": bias})

    layer = {"attention": {"query": dense(32, 32)}, "feedforward": {"up": dense(32, 96)}}
    return {"layer0": layer, "head": dense(32, 5)}


def encoded(params, encode):
    return kernels.encoded(params, lambda kernel: encode(kernel, SIDE))


def test_windows_hold_every_character_once_and_the_one_after_it():
    found = windows("abcabcabcab", "abc", 3)
    assert found.read.tolist() == [[0, 1, 2]] * 3
    assert found.follow.tolist() == [[1, 2, 0]] * 3
    assert len(found.spread(2)) == 2 and len(found.spread(0)) == len(found.spread(9)) == 3


def test_circulant_blocks_come_back_from_diagonals_and_columns_and_are_flattened_by_row_means(kernel):
    member = jc.Tied(jc.diagonals(SIDE)).project(kernel)
    for rule in (kernels.DIAGONAL, kernels.COLUMN):
        np.testing.assert_allclose(kernels.blocks(member, SIDE, rule).matrix(), member, atol=1e-6)
    vectors = kernels.blocks(member, SIDE, kernels.ROW).vectors
    assert float(jnp.ptp(vectors, axis=2).max()) < 1e-6 and float(jnp.ptp(vectors)) > 0.1


def test_diagonal_means_are_nearest_and_first_columns_further_than_nothing():
    """Of Gaussian blocks of side b the one misses 1 - 1/b of the energy, the other twice as much."""
    large = jnp.asarray(np.random.default_rng(1).normal(size=(256, 256)), jnp.float32)
    missed = {rule: float(jnp.mean((kernels.blocks(large, 8, rule).matrix() - large) ** 2)) for rule in kernels.RULES}
    assert missed[kernels.DIAGONAL] == pytest.approx(7 / 8, rel=0.02)
    assert missed[kernels.COLUMN] == pytest.approx(14 / 8, rel=0.02)
    assert missed[kernels.ROW] > missed[kernels.DIAGONAL]


@pytest.mark.parametrize(
    ("form", "matrix"), [(kernels.spectra, kernels.blocks), (kernels.factors, kernels.factors)], ids=["FFT", "factors"]
)
def test_products_never_go_through_the_matrix_and_are_its_products(kernel, form, matrix):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 24)), jnp.float32)
    np.testing.assert_allclose(form(kernel, SIDE).product(x), x @ matrix(kernel, SIDE).matrix(), rtol=1e-4, atol=1e-4)


def test_the_gradient_of_an_index_vector_is_the_sum_along_its_diagonals(kernel):
    kept, pull = kernels.blocks(kernel, SIDE), jnp.arange(kernel.size, dtype=jnp.float32).reshape(kernel.shape)
    found = jax.grad(lambda kept: jnp.sum(kept.matrix() * pull))(kept).vectors
    np.testing.assert_allclose(found, SIDE * kernels.blocks(pull, SIDE).vectors, rtol=1e-5)


def test_forms_have_as_many_numbers_and_leave_the_rest_of_the_network_alone(params):
    dense = storage.numbers(params, {})
    for form in (kernels.blocks, kernels.factors):
        kept = encoded(params, form)
        assert storage.numbers(kept, {}) == dense / SIDE
        assert jax.tree.map(jnp.shape, kernels.decoded(kept)) == jax.tree.map(jnp.shape, params)
        assert jax.tree.all(jax.tree.map(np.array_equal, kept["head"], params["head"]))


def test_bytes_on_disk_are_those_that_tied_diagonals_promise(params):
    pytest.importorskip("safetensors")
    kept = encoded(params, kernels.blocks)
    spec = jc.assign(params, {kernels.MATRICES: jc.Tied(jc.diagonals(SIDE))})
    promised = sum(float(jc.footprint(spec, kernels.decoded(kept))[path].bits) / 8 for path in spec)
    assert storage.stored(kept, {}) == promised == storage.stored(params, {}) / SIDE
    assert storage.stored(storage.half(kept), {}) == promised / 2


@pytest.mark.parametrize("side", [4, 16])
def test_weights_pruned_to_as_many_bytes_take_no_more_and_nearly_as_many(side):
    """With a bit for every weight at side 4, and the places of those that are kept at side 16."""
    kernel = np.random.default_rng(3).normal(size=(64, 64)).astype(np.float32)
    pruned = np.where(
        np.abs(kernel) >= np.quantile(np.abs(kernel), 1 - storage.affordable(kernel.size, side)), kernel, 0
    )
    found = float(jc.Sparse(0.5).footprint(jnp.asarray(pruned)).bits)
    assert 0.98 < found / (32 * kernel.size / side) <= 1


def test_no_character_is_foretold_from_itself_or_from_later_ones():
    model = Transformer(alphabet=5, width=8, hidden=16, heads=2, depth=1)
    tokens = np.array([[0, 1, 2, 3, 4, 0]], np.uint8)
    changed = tokens.copy()
    changed[0, 3] = 0
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    first, second = (jax.jit(model.apply)(variables, each) for each in (tokens, changed))
    apart = np.abs(first - second).max(axis=(0, 2))
    assert apart[:3].max() < 1e-6 < 1e-3 < apart[3]


def test_multiplications_are_counted_of_transforms_and_of_factors():
    """A matrix of 64 by 64 in blocks of 8: 16 transforms of 24 products, and 64 blocks of five complex ones."""
    assert latency.multiplications([(64, 64)], latency.FFT, 8) == (16 * 24 + 64 * 5 * 4) / 64**2
    assert latency.multiplications([(64, 64)], latency.LOW_RANK, 8) == 4 * 128 / 64**2


def outcomes(accuracies):
    return [Outcome(6.0, 2.0, each, 2.0, each, 100, 8.0, 400, 200) for each in accuracies]


@pytest.mark.parametrize(
    ("rivals", "words"),
    [([0.50, 0.51, 0.50], "Holds"), ([0.59, 0.58, 0.59], "Does not hold"), ([0.56, 0.52, 0.555], "Undecided")],
)
def test_verdicts_follow_from_paired_differences(rivals, words):
    ours, dense = outcomes([0.56, 0.57, 0.56]), outcomes([0.566, 0.571, 0.562])
    found = {
        side: {study.SCRATCH: ours, study.DIAGONAL: ours, study.COLUMN: outcomes(rivals), study.LOW_RANK: ours}
        for side in (4, 8)
    }
    said = {line.split(": ", 1)[1].split(" (")[0]: line.split(":")[0] for line in ftrans._claims(found, dense, dense)}
    assert said[f"blocks of 8: {study.DIAGONAL} is ahead of {study.COLUMN}"] == words
    assert said[f"blocks of 8: {study.DIAGONAL} is ahead of {study.LOW_RANK}"] == "Does not hold"
    assert said["blocks of 4, from scratch, lose less than 1 point"] == "Holds"
    assert said["blocks of 4 are ahead of 8, from scratch"] == "Does not hold"
    assert not any(study.ADMM in claim for claim in said)


@pytest.mark.slow
def test_a_run_writes_its_tables_its_plot_and_networks_of_the_stated_size(tmp_path, capsys, shared_data, monkeypatch):
    monkeypatch.setenv("JAXCOMP_DATA", str(shared_data))
    settings = ["steps=5", "pairs=1", "windows=32"]
    assert main(["run", "ftrans", "--quick", "--results", str(tmp_path), "--set", *settings]) == 0
    (result,) = tmp_path.glob("ftrans/*/result.json")
    metrics = json.loads(result.read_text())["metrics"]
    (found,) = metrics["found"].values()
    dense = metrics["dense"][0]["bytes"]
    for method in (study.SCRATCH, study.DIAGONAL, study.COLUMN):
        (one,) = found[method]
        assert one["ratio"] == 8 and one["bytes"] == dense / 8 and one["half_bytes"] == dense / 16
        assert set(one) == {field.name for field in dataclasses.fields(Outcome)}
    assert all(one["difference"] < 1e-3 for each in metrics["compiled"].values() for one in each)
    assert (result.parent / "accuracy.png").exists()
    shown = capsys.readouterr().out
    assert "first column" in shown and "compiled ms" in shown and "by FFT" in shown
