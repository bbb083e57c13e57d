"""Features of speech: what a tone, a ramp and silence must give, and the published split of the digits."""

import numpy as np
import pytest
import scipy.fft

from experiments import _speech
from experiments._errors import UsageError

RATE = 8000


def tone(hertz, seconds=0.5, loudness=0.5):
    return loudness * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE).astype(np.float32)


def energies(signal):
    """Logarithms of the energy in every band, as the cepstra of a frame imply them if none is left out."""
    return scipy.fft.idct(_speech.cepstra(signal, RATE), n=26, norm="ortho", axis=1)


def test_a_higher_tone_lies_in_a_higher_band():
    loudest = [energies(tone(hertz)).mean(axis=0).argmax() for hertz in (200, 500, 1000, 2000, 3500)]
    assert loudest == sorted(set(loudest))


def test_bands_overlap_so_that_every_frequency_between_the_outer_centres_counts_once():
    filters = _speech.mel_filters(256, RATE)
    inner = slice(filters[0].argmax() + 1, filters[-1].argmax())
    np.testing.assert_allclose(filters.sum(axis=0)[inner], 1)
    assert filters.shape == (26, 129) and filters.min() == 0


def test_the_cosine_transform_is_scipys():
    np.testing.assert_allclose(
        _speech._cosines() @ np.eye(26), scipy.fft.dct(np.eye(26), norm="ortho", axis=0)[:13], atol=1e-12
    )


def test_loudness_moves_the_first_coefficient_alone():
    moved = _speech.cepstra(tone(440), RATE) - _speech.cepstra(tone(440, loudness=0.25), RATE)
    np.testing.assert_allclose(moved[:, 0], np.sqrt(26) * np.log(4), rtol=0.02)
    np.testing.assert_allclose(moved[:, 1:], 0, atol=0.1)


def test_differences_of_a_ramp_are_its_slope_and_of_a_constant_nothing():
    ramp = np.stack([3.0 * np.arange(20), np.ones(20)], axis=1)
    slopes = _speech.differences(ramp)
    np.testing.assert_allclose(slopes[2:-2], np.tile([3.0, 0.0], (16, 1)), atol=1e-12)
    assert slopes.shape == ramp.shape


def test_frames_are_counted_without_a_last_one_that_is_not_full():
    assert len(_speech.cepstra(tone(440, 0.5), RATE)) == 1 + (4000 - 256) // 160
    assert len(_speech.cepstra(tone(440, 0.01), RATE)) == 1


def test_features_have_mean_zero_and_variance_one_and_silence_has_none():
    noise = np.random.default_rng(0).normal(size=4000).astype(np.float32) / 10
    features = _speech.features_of(noise, RATE)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(features.std(axis=0), 1)
    np.testing.assert_allclose(_speech.features_of(np.zeros(4000), RATE), 0, atol=1e-6)


def test_examples_are_cut_or_filled_with_zeros():
    short, long = _speech._fitted(np.ones((3, 39)), 5), _speech._fitted(np.ones((9, 39)), 5)
    assert short.shape == long.shape == (5, 39) and short.dtype == np.float32
    assert short[:3].all() and not short[3:].any() and long.all()


def test_a_folder_without_the_recordings_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCOMP_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=r"audio/fsdd\.npz by \$JAXCOMP_DATA"):
        _speech.load()


def test_the_published_split_has_five_takes_of_every_digit_and_speaker(shared_data, monkeypatch):
    monkeypatch.setenv("JAXCOMP_DATA", str(shared_data))
    data = _speech.load()
    assert [len(split) for split in (data.train, data.validation, data.test)] == [2400, 300, 300]
    assert np.bincount(data.test.label).tolist() == [30] * 10
    assert data.train.image.shape == (2400, 32, 39) and np.isfinite(data.train.image).all()
    full = np.mean([np.any(split.image[:, -1] != 0, axis=1).mean() for split in (data.train, data.test)])
    assert full < 0.07
