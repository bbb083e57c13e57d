"""Numbers packed in bits come back, in no more bytes than were said."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxcomp.storage._bits import pack, packed_bytes, unpack


@given(radix=st.integers(1, 2**63), count=st.integers(0, 200), seed=st.integers(0, 10))
@example(radix=3, count=100_003, seed=0)  # several runs, the last of them cut off
@example(radix=2, count=300_001, seed=0)
@example(radix=2**31, count=40_000, seed=0)
def test_numbers_below_any_radix_come_back(radix, count, seed):
    numbers = np.random.default_rng(seed).integers(0, radix, count)
    data = pack(numbers, radix)
    assert len(data) == packed_bytes(count, radix)
    assert np.array_equal(unpack(data, count, radix), numbers)


@pytest.mark.parametrize("bits", range(33))
def test_a_power_of_two_takes_its_bits_and_no_more(bits):
    assert packed_bytes(1000, 2**bits) == 125 * bits


@pytest.mark.parametrize("radix", [3, 5, 6, 7, 11, 12, 15, 100, 1000])
def test_fractions_of_bits_are_used(radix):
    assert packed_bytes(10**6, radix) * 8 <= 1.02 * 10**6 * np.log2(radix)


def test_the_lowest_bits_come_first():
    assert pack(np.array([1, 0, 3, 2]), 4) == bytes([0b10_11_00_01])
    assert pack(np.array([0x12, 0xFFF]), 2**12) == bytes([0x12, 0xF0, 0xFF])


def test_a_number_that_is_no_digit_is_refused():
    with pytest.raises(ValueError, match=r"below 3 hold 70368744177663 in 29 digits"):
        unpack(b"\xff" * 6, 12, 3)


def test_missing_and_surplus_bytes_are_refused():
    for data in (b"", b"\0\0"):
        with pytest.raises(ValueError, match=rf"8 numbers below 2 take 1 bytes, found {len(data)}"):
            unpack(data, 8, 2)
