"""Whole numbers below a radix in as few bytes as they take: so many bits each, or several to a word."""

import functools
import math

import numpy as np

_WORD = 63  # bits: what a word holds stays positive
_RUN = 1 << 15  # words packed at once, a multiple of 8: every run but the last ends on a byte
_WORTH = 0.98  # words of several digits take time: they must save more than 2 %


def packed_bytes(count: int, radix: int) -> int:
    """What so many numbers below the radix take."""
    digits, width = _words(radix)
    return (-(-count // digits) * width + 7) // 8


def pack(numbers: np.ndarray, radix: int) -> bytes:
    """Numbers from 0 to ``radix - 1``, in order, the lowest bits first.

    A radix of ``2**k`` takes k bits a number. Of others several digits make a word: 29 digits of base 3 take 46 bits.

    >>> pack(np.array([1, 0, 1, 1]), 2), len(pack(np.zeros(1000, int), 3))
    (b'\\r', 202)
    """
    digits, width = _words(radix)
    if not width:
        return b""
    numbers = np.ascontiguousarray(numbers, "<u8")
    numbers = np.pad(numbers, (0, -len(numbers) % digits)).reshape(-1, digits)
    words = numbers @ np.uint64(radix) ** np.arange(digits, dtype=np.uint64)
    return b"".join(_pack_words(words[i : i + _RUN], width) for i in range(0, len(words), _RUN))


def unpack(data: bytes, count: int, radix: int) -> np.ndarray:
    """The inverse of `pack`, for so many numbers.

    Raises:
        ValueError: the bytes are not as many as that takes, or hold a number that is not below the radix.
    """
    digits, width = _words(radix)
    expected = packed_bytes(count, radix)
    if len(data) != expected:
        raise ValueError(f"{count} numbers below {radix} take {expected} bytes, found {len(data)}: they are damaged")
    if not width:
        return np.zeros(count, np.int64)
    step, many = _RUN * width // 8, -(-count // digits)
    runs = [_unpack_words(data[i * step : (i + 1) * step], width) for i in range(-(-many // _RUN))]
    words = np.concatenate([np.zeros(0, np.uint64), *runs])[:many]
    if many and words.max() >= radix**digits:
        raise ValueError(f"packed numbers below {radix} hold {words.max()} in {digits} digits: they are damaged")
    powers = np.uint64(radix) ** np.arange(digits, dtype=np.uint64)
    return (words[:, None] // powers[None] % np.uint64(radix)).reshape(-1)[:count].astype(np.int64)


@functools.cache
def _words(radix: int) -> tuple[int, int]:
    """How many digits a word has, and how many bits."""
    if not 1 <= radix <= 2**_WORD:
        raise ValueError(f"a radix must lie between 1 and 2**{_WORD}, found {radix}")
    best = 1, (radix - 1).bit_length()
    for digits in range(2, math.floor(_WORD / math.log2(radix)) + 1 if radix > 2 else 0):
        width = (radix**digits - 1).bit_length()
        if width <= _WORD and width * best[0] < best[1] * digits * (_WORTH if best[0] == 1 else 1):
            best = digits, width
    return best


def _pack_words(words: np.ndarray, width: int) -> bytes:
    bits = np.unpackbits(words.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    return np.packbits(bits[:, :width], bitorder="little").tobytes()


def _unpack_words(data: bytes, width: int) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    words = bits[: len(bits) // width * width].reshape(-1, width)
    wide = np.packbits(np.pad(words, ((0, 0), (0, 64 - width))), axis=1, bitorder="little")
    return wide.reshape(-1).view("<u8").astype(np.uint64)
