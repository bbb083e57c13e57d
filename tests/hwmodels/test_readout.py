"""How columns are read: exact without errors, and each error does what it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.hwmodels._readout import ENCODINGS, Readout

KEY = jax.random.key(0)
_read = jax.jit(lambda readout, x, w, chip, key: readout.matmul(x, w, readout.chip(chip), key))


def operands(encoding: str, weight_bits: int, depth: int, outputs: int = 5, rows: int = 7, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 8, (rows, depth))
    if encoding == "plus_minus":
        return x, 2 * rng.integers(0, 2**weight_bits, (depth, outputs)) - (2**weight_bits - 1)
    return x, rng.integers(-(2 ** (weight_bits - 1)), 2 ** (weight_bits - 1), (depth, outputs))


def read(readout: Readout, x, w, chip_key=KEY, key=KEY):
    return _read(readout, jnp.asarray(x), jnp.asarray(w), chip_key, key)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("weight_bits", "depth"), [(1, 64), (2, 1), (4, 65), (6, 200)])
def test_without_errors_the_product_is_exact(encoding, weight_bits, depth):
    x, w = operands(encoding, weight_bits, depth)
    found = read(Readout(adc_bits=jnp.inf, weight_bits=weight_bits, encoding=encoding), x, w)
    np.testing.assert_array_equal(found, x @ w)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_steps_of_one_that_nothing_exceeds_lose_nothing(encoding):
    x, w = operands(encoding, 4, 150)
    np.testing.assert_array_equal(read(Readout(adc_bits=10.0, clip=512.0, encoding=encoding), x, w), x @ w)


def test_sums_beyond_the_range_are_clipped():
    x, w = np.full((1, 64), 7), np.ones((64, 1))
    readout = Readout(adc_bits=7.0, clip=64.0, weight_bits=1, encoding="plus_minus")
    assert read(readout, x, w).tolist() == [[63.0]]
    assert read(readout, x, -w).tolist() == [[-64.0]]
    assert read(dataclasses.replace(readout, encoding="twos_complement", weight_bits=2), x, w).tolist() == [[127.0]]


def test_signal_to_noise_by_range_is_that_of_the_page():
    x, w = operands("plus_minus", 1, 64, outputs=3000, rows=300)
    exact = x @ w
    for clip, decibels in ((448.0, 24.5), (224.0, 30.5), (112.0, 34.6), (96.0, 30.6)):
        error = read(Readout(clip=clip, weight_bits=1, encoding="plus_minus"), x, w) - exact
        assert 10 * np.log10(exact.var() / np.var(error)) == pytest.approx(decibels, abs=0.4)


@pytest.mark.slow
def test_tiles_add_their_errors_as_independent_ones():
    readout, errors = Readout(adc_bits=20.0, clip=2.0**17, weight_bits=1, encoding="plus_minus", noise=8.0), []
    for tiles in (1, 4):
        x, w = operands("plus_minus", 1, 64 * tiles, outputs=40, rows=300)
        errors.append(np.std(read(readout, x, w) - x @ w))
    assert errors[0] == pytest.approx(8 * 0.25, rel=0.03)  # steps of 2 * 2^17 / 2^20
    assert errors[1] / errors[0] == pytest.approx(2, rel=0.03)


def test_read_noise_is_fresh_and_a_chip_stays_itself():
    x, w = operands("twos_complement", 4, 64)
    noisy, wrong = Readout(noise=1.0), Readout(mismatch=0.05, offset=1.0, gain=0.02, bow=0.5, input_error=0.1)
    other = jax.random.key(1)
    assert (read(noisy, x, w, key=KEY) != read(noisy, x, w, key=other)).any()
    np.testing.assert_array_equal(read(wrong, x, w, key=KEY), read(wrong, x, w, key=other))
    assert (read(wrong, x, w, KEY) != read(wrong, x, w, other)).any()


@pytest.mark.slow
def test_equal_capacitors_average_what_is_unused_away_and_scaled_ones_change_nothing():
    x, w = operands("twos_complement", 4, 50)
    readout = Readout(adc_bits=jnp.inf)
    chip = dataclasses.replace(readout.chip(KEY), capacitors=jnp.full((64, 128), 1.25))
    np.testing.assert_allclose(readout.matmul(jnp.asarray(x), jnp.asarray(w), chip, KEY), x @ w, rtol=1e-6, atol=1e-4)


def test_an_input_of_zero_stays_zero_whatever_the_levels():
    readout = Readout(adc_bits=jnp.inf, input_error=0.5)
    np.testing.assert_array_equal(read(readout, np.zeros((2, 70)), np.ones((70, 3))), np.zeros((2, 3)))


def test_a_macro_repeats_its_columns_for_wide_layers():
    readout = Readout(gain=0.1, adc_bits=jnp.inf, weight_bits=1, encoding="plus_minus", columns=4)
    x, w = np.ones((1, 64)), np.ones((64, 8))
    found = read(readout, x, w)[0]
    np.testing.assert_allclose(found[:4], found[4:])
    assert len(set(np.asarray(found[:4]).tolist())) == 4


def test_gradients_are_those_of_the_product():
    x, w = (jnp.asarray(a, jnp.float32) for a in operands("twos_complement", 4, 100))
    readout = Readout(noise=0.5, mismatch=0.02, adc_bits=5.0)
    chip = readout.chip(KEY)
    found = jax.grad(lambda x, w: jnp.sum(readout.matmul(x, w, chip, KEY) ** 2) / 2, (0, 1))(x, w)
    y = readout.matmul(x, w, chip, KEY)
    for ours, expected in zip(found, (y @ w.T, x.T @ y), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-2)


def test_many_chips_and_widths_at_once_are_a_loop_traced_once():
    x, w = (jnp.asarray(a) for a in operands("twos_complement", 4, 100))
    keys, traces = jax.random.split(KEY, 3), 0

    @jax.jit
    @jax.vmap
    def together(key, bits):
        nonlocal traces
        traces += 1
        readout = Readout(adc_bits=bits, mismatch=0.02, offset=0.5, noise=0.3)
        return readout.matmul(x, w, readout.chip(key), key)

    found = together(keys, jnp.array([5.0, 7.0, jnp.inf]))
    together(keys, jnp.array([4.0, 6.0, 8.0]))
    assert traces == 1
    for key, bits, one in zip(keys, (5.0, 7.0, jnp.inf), found, strict=True):
        readout = Readout(adc_bits=bits, mismatch=0.02, offset=0.5, noise=0.3)
        expected = readout.matmul(x, w, readout.chip(key), key)
        # A sum that lies between two steps may go to either.
        assert np.mean(np.abs(one - expected) > 1e-2) < 0.05


def test_misuse_says_what_is_expected():
    x, w = operands("twos_complement", 4, 10)
    with pytest.raises(ValueError, match="encoding is 'ones', expected one of"):
        read(Readout(encoding="ones"), x, w)
    with pytest.raises(ValueError, match="inputs are 10 deep and weights 9"):
        read(Readout(), x, w[:9])
