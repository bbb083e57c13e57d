"""Figures: small PNG files that hide nothing."""

import numpy as np

from experiments import _plots


def assert_small_png(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) < 150_000


def sparse(*shape, density):
    random = np.random.default_rng(0)
    return np.where(random.random(shape) < density, random.standard_normal(shape), 0.0)


def test_accuracy_against_compression_writes_a_small_png(tmp_path):
    curves = {"admm": [(71.2, 0.99, 0.001), (10.0, 0.991, 0.001)], "magnitude": [(10.0, 0.98, 0.0)]}
    _plots.accuracy_against_compression(tmp_path / "plot.png", curves, dense=0.992)
    assert_small_png(tmp_path / "plot.png")


def test_residuals_may_reach_zero(tmp_path):
    _plots.residuals(tmp_path / "plot.png", {"primal": [1.0, 0.1, 0.0], "dual": [0.5, 0.2, 0.1]}, stages=(0, 2))
    assert_small_png(tmp_path / "plot.png")


def test_kept_weights_draws_kernels_matrices_and_leaves_without_weights(tmp_path):
    weights = {
        "conv1/kernel": sparse(5, 5, 1, 20, density=0.2),
        "conv2/kernel": sparse(5, 5, 20, 50, density=0.08),
        "fc1/kernel": sparse(800, 500, density=0.01),
        "fc2/kernel": sparse(500, 10, density=0.0),
        "fc3/kernel": sparse(10, 10, density=1.0),
    }
    _plots.kept_weights(tmp_path / "plot.png", weights)
    assert_small_png(tmp_path / "plot.png")


def test_a_reduced_matrix_shows_the_largest_weight_of_each_cell_with_its_sign():
    matrix = np.zeros((10, 501))
    matrix[3, 500], matrix[3, 0], matrix[3, 1] = -2.0, 0.5, -0.6
    image, vertical, horizontal = _plots._reduced(matrix)
    assert image.shape == (10, 167) and np.count_nonzero(image) == 2
    assert image[3, 0] == -0.6 and image[3, -1] == -2.0
    assert vertical == "10 inputs" and horizontal.startswith("501 outputs")


def test_tiles_lie_in_rows_of_inputs_and_columns_of_outputs():
    kernel = np.random.default_rng(0).random((3, 3, 2, 4))
    image, _, _ = _plots._tiled(kernel)
    assert image.shape == (2 * 4 - 1, 4 * 4 - 1)
    np.testing.assert_array_equal(image[4:7, 8:11], kernel[:, :, 1, 2])
