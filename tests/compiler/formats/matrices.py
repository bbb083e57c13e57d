"""Matrices of every structure that a format reads, and rows to multiply them with."""

import numpy as np


def rows(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def block_columns(depth, columns, width, density, seed=0):
    """Strips of outputs, each with as many inputs of its own."""
    rng = np.random.default_rng(seed)
    matrix = np.zeros((depth, columns), np.float32)
    kept = round(depth * density)
    for start in range(0, columns, width):
        end = min(start + width, columns)
        matrix[rng.choice(depth, kept, replace=False), start:end] = rng.normal(size=(kept, end - start))
    return matrix


def blocks(depth, columns, side, density, seed=0):
    """Square blocks wherever they fall, so that strips have unequally many."""
    rng = np.random.default_rng(seed)
    number = depth // side * (columns // side)
    keep = rng.permutation(number) < round(density * number)
    keep = np.kron(keep.reshape(depth // side, columns // side), np.ones((side, side)))
    return (rng.normal(size=keep.shape) * keep).astype(np.float32)


def unstructured(depth, columns, density, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(depth, columns)) * (rng.random((depth, columns)) < density)).astype(np.float32)


def n_of_m(depth, columns, n, m, seed=0):
    """Of every m inputs in turn, each output has n."""
    rng = np.random.default_rng(seed)
    keep = rng.permuted(np.broadcast_to((np.arange(m) < n)[None, :, None], (depth // m, m, columns)), axis=1)
    return (rng.normal(size=keep.shape) * keep).reshape(depth, columns).astype(np.float32)


def circulant(depth, columns, side, seed=0):
    """Blocks whose every row is the one above, shifted by one."""
    first = np.random.default_rng(seed).normal(size=(depth // side, columns // side, side)).astype(np.float32)
    rows = [np.roll(first, shift, axis=-1) for shift in range(side)]
    return np.stack(rows, axis=1).reshape(depth, columns)


def quantized(depth, columns, largest=127, seed=0):
    """Whole multiples of a scale for each output."""
    rng = np.random.default_rng(seed)
    scale = (0.001 + 0.01 * rng.random(columns)).astype(np.float32)
    return rng.integers(-largest, largest + 1, size=(depth, columns)).astype(np.float32) * scale


def structured(seed=0):
    """Small ones, by name."""
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=(256, 320)).astype(np.float32) * (rng.random(320) < 0.3)
    return {
        "strips": block_columns(256, 256, 32, 0.1, seed),
        "uneven strips": block_columns(250, 212, 40, 0.12, seed),
        "reordered strips": block_columns(256, 256, 32, 0.1, seed)[:, rng.permutation(256)],
        "blocks": blocks(512, 512, 32, 0.1, seed),
        "strips of inputs": block_columns(250, 256, 40, 0.1, seed).T.copy(),
        "removed inputs": block_columns(256, 192, 192, 0.25, seed),
        "removed outputs": outputs.astype(np.float32),
        "unstructured": unstructured(256, 200, 0.02, seed),
        "n of m": n_of_m(256, 192, 1, 16, seed),
        "circulant": circulant(128, 192, 16, seed),
        "zero": np.zeros((64, 48), np.float32),
    }
