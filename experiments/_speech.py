"""Spoken digits as the features that recognisers of speech read: mel-frequency cepstra and how they change."""

import functools
import os
from pathlib import Path

import numpy as np

from experiments._data import FOLDER_VARIABLE, Dataset, Split
from experiments._errors import UsageError

NAME = "fsdd"
CEPSTRA, FEATURES = 13, 39  # coefficients of a frame, and those with their first and second differences

_FILTERS = 26
_EMPHASIS = 0.97
_FLOOR = 1e-10  # of the energy in a band, where full scale is 1: silence has a logarithm too
_REACH = 2  # frames on either side that a difference is taken over


def load(frames: int = 32, window_s: float = 0.032, step_s: float = 0.02) -> Dataset:
    """The Free Spoken Digit Dataset: 3000 recordings of ten digits by six speakers, at 8 kHz.

    A split's ``image`` is float32 ``[n, frames, 39]``: 13 cepstra with their first and second differences, each brought
    to mean 0 and variance 1 over its recording, cut or filled with zeros at the end. 32 frames of 20 ms are longer than
    95 % of the recordings. Test is the published split, takes 0 to 4 of every speaker and digit (300); validation the
    next five (300); 2400 are left to train on.

    Args:
      frames: in every example.
      window_s, step_s: length of a frame, and from the start of one to that of the next, in seconds.

    Raises:
      UsageError: there is no ``audio/fsdd.npz`` in ``$JAXCOMP_DATA``, nor in ``../shared/data``.
    """
    path = Path(os.environ.get(FOLDER_VARIABLE, "../shared/data")) / "audio" / "fsdd.npz"
    if not path.is_file():
        raise UsageError(f"there is no {path}: name the folder that holds audio/fsdd.npz by ${FOLDER_VARIABLE}.")
    return _load(path, frames, window_s, step_s)


@functools.lru_cache
def _load(path: Path, frames: int, window_s: float, step_s: float) -> Dataset:
    with np.load(path) as source:
        rate, take, label = int(source["sample_rate"]), source["take"], source["label"].astype(np.int32)
        recordings = np.split(source["audio"] / np.float32(2**15), source["offsets"][1:-1])
    features = np.stack([_fitted(features_of(each, rate, window_s, step_s), frames) for each in recordings])
    parts = take >= 10, (take >= 5) & (take < 10), take < 5
    return Dataset(NAME, *(Split(features[rows], label[rows]) for rows in parts), num_classes=10)


def features_of(signal: np.ndarray, rate: int, window_s: float = 0.032, step_s: float = 0.02) -> np.ndarray:
    """Cepstra and their first and second differences, normalised over the recording: ``[frames, 39]``."""
    first = cepstra(signal, rate, window_s, step_s)
    second = differences(first)
    each = np.concatenate([first, second, differences(second)], axis=1)
    return (each - each.mean(axis=0)) / np.maximum(each.std(axis=0), 1e-5)


def cepstra(signal: np.ndarray, rate: int, window_s: float = 0.032, step_s: float = 0.02) -> np.ndarray:
    """Mel-frequency cepstral coefficients ``[frames, 13]`` of a signal between -1 and 1.

    ``c = D log(M |F h s|^2)``: frames s of the emphasised signal under a Hamming window h, Fourier transformed, their
    power gathered in 26 triangles that are evenly spaced in mel, and the orthonormal cosine transform of its logarithm.
    A last frame that is not full is left out; a signal shorter than a frame is filled with zeros.
    """
    length, step = round(window_s * rate), round(step_s * rate)
    emphasised = np.append(signal[:1], signal[1:] - _EMPHASIS * signal[:-1])
    emphasised = np.pad(emphasised, (0, max(0, length - len(emphasised))))
    frames = np.lib.stride_tricks.sliding_window_view(emphasised, length)[::step]
    bins = 2 ** (length - 1).bit_length()
    power = np.abs(np.fft.rfft(frames * np.hamming(length), bins)) ** 2 / bins
    return np.log(power @ mel_filters(bins, rate).T + _FLOOR) @ _cosines().T


def differences(x: np.ndarray) -> np.ndarray:
    """The slope of every column, fitted to five frames; the first and the last frame are repeated at the ends."""
    padded = np.pad(x, ((_REACH, _REACH), (0, 0)), mode="edge")
    offsets = np.arange(-_REACH, _REACH + 1)
    moved = np.stack([padded[_REACH + n : _REACH + n + len(x)] for n in offsets])
    return np.tensordot(offsets, moved, 1) / np.sum(offsets**2)


@functools.lru_cache
def mel_filters(bins: int, rate: int) -> np.ndarray:
    """Triangles from 0 to half the sampling rate, one at the next one's foot: ``[26, bins / 2 + 1]``."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, _FILTERS + 2) / 2595) - 1)
    frequency = np.arange(bins // 2 + 1) * rate / bins
    low, centre, high = (corners[i : i + _FILTERS, None] for i in range(3))
    return np.maximum(0, np.minimum((frequency - low) / (centre - low), (high - frequency) / (high - centre)))


def _cosines() -> np.ndarray:
    """The first rows of the orthonormal cosine transform of as many numbers as there are filters."""
    order, place = np.arange(CEPSTRA)[:, None], np.arange(_FILTERS) + 0.5
    scale = np.where(order == 0, 1, np.sqrt(2)) / np.sqrt(_FILTERS)
    return scale * np.cos(np.pi * order * place / _FILTERS)


def _fitted(features: np.ndarray, frames: int) -> np.ndarray:
    """The first so many frames; a shorter recording ends in zeros, the mean of every feature."""
    kept = features[:frames].astype(np.float32)
    return np.pad(kept, ((0, frames - len(kept)), (0, 0)))
