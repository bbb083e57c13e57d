"""What a charge-domain macro makes of an integer product: noise, mismatch and conversion, with a straight way back."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp._pytree import register_dataclass

ENCODINGS = ("twos_complement", "plus_minus")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Imperfections:
    """What is wrong with one chip, which stays the same from read to read.

    Attributes:
        capacitors: of every multiplier, relative, ``[rows, columns]``.
        gains: of every column's converter, ``[columns]``.
        offsets: of every column's converter, in steps of it, ``[columns]``.
        bows: of every column's converter, the largest deviation from a line, in steps of it, ``[columns]``.
        inputs: what every input level comes out as, ``[levels]``.
    """

    capacitors: jax.Array
    gains: jax.Array
    offsets: jax.Array
    bows: jax.Array
    inputs: jax.Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Readout:
    r"""How columns of cells are read: what a layer trained for a macro has to live with.

    An integer weight is a sum of bits, ``w = sum_i c_i b_i``, one bit a column: in two's complement ``b`` in {0, 1} and
    ``c = 1, 2, 4, ..., -2^(B-1)``; as plus and minus one ``b`` in {-1, 1} and ``c = 1, 2, 4, ..., 2^(B-1)``, which
    knows odd numbers only. Inputs come in tiles of `rows`. For tile ``t`` and column ``c`` the capacitors share charge,

        s = rows * sum_r C_rc in(x_r) b_rc / sum_r C_rc,        rows that are not used add nothing,

    the converter, with steps of ``2 clip / 2^bits``, sees ``g_c s / step + o_c + bow_c sin(pi s / clip) + noise`` and
    gives the nearest of ``2^bits`` whole numbers: around zero for plus and minus one, from zero for two's complement:
    its range is ``[-clip, clip)`` or ``[0, 2 clip)``. Tiles and bits are then summed as integers:
    ``y = sum_t sum_i c_i q_i``. With infinitely many bits and no other error ``y = x @ w`` exactly (while the sums are
    below 2^24).

    Gradients are those of ``x @ w``: of whatever was added and of rounding and clipping there is none.

    Read noise is fresh at every read (a key a call); capacitors, gains, offsets, bows and input levels are
    `Imperfections` of a chip, so that ``jax.vmap`` over chips and keys asks what a batch of silicon does. Columns of a
    layer take those of the macro in turn, and all tiles use the same ones.

    The form is physical; sizes of mismatch, offset and bow are the caller's: no chip publishes them. The sibling
    MC2-RAM has read noise of 4.5 % of a step. Signal to noise of 64 rows of uniform inputs and random signs at 7 bits
    comes out within 0.4 dB of the simulated 24.5, 30.5, 34.6, 30.6 dB for ``clip`` 448, 224, 112, 96
    (`tests/hwmodels/test_readout.py`).

    Args:
        adc_bits: of the converters; ``inf`` reads without steps, and without clipping.
        clip: half of the range, in units of the integer product of one tile and column. The largest sum is
            ``rows * (levels - 1)``.
        noise: standard deviation of a read, in steps.
        mismatch, gain: standard deviations of capacitors and gains, relative.
        offset, bow: standard deviations, in steps.
        input_error: standard deviation of input levels, in levels; zero stays zero.
        weight_bits: bits of a weight; static.
        encoding: "twos_complement" or "plus_minus"; static.
        rows, columns, levels: of the macro; static.

    >>> x, w = jnp.array([[7, 0, 3]]), jnp.array([[1, -8], [5, 2], [-3, 7]])
    >>> ideal = Readout(adc_bits=jnp.inf)
    >>> ideal.matmul(x, w, ideal.chip(jax.random.key(0)), jax.random.key(1)).tolist()
    [[-2.0, -35.0]]

    References: Chen et al., CAP-RAM, IEEE JSSC 2021, arXiv 2107.02388.
    """

    adc_bits: Any = 7.0
    clip: Any = 112.0
    noise: Any = 0.0
    mismatch: Any = 0.0
    gain: Any = 0.0
    offset: Any = 0.0
    bow: Any = 0.0
    input_error: Any = 0.0
    weight_bits: int = dataclasses.field(default=4, metadata={"static": True})
    encoding: str = dataclasses.field(default="twos_complement", metadata={"static": True})
    rows: int = dataclasses.field(default=64, metadata={"static": True})
    columns: int = dataclasses.field(default=128, metadata={"static": True})
    levels: int = dataclasses.field(default=8, metadata={"static": True})

    def chip(self, key: jax.Array) -> Imperfections:
        """A chip drawn at random."""
        keys = jax.random.split(key, 5)
        wide = (self.columns,)
        levels = jnp.arange(self.levels, dtype=jnp.float32)
        wrong = self.input_error * jax.random.normal(keys[4], (self.levels,))
        return Imperfections(
            capacitors=1 + self.mismatch * jax.random.normal(keys[0], (self.rows, self.columns)),
            gains=1 + self.gain * jax.random.normal(keys[1], wide),
            offsets=self.offset * jax.random.normal(keys[2], wide),
            bows=self.bow * jax.random.normal(keys[3], wide),
            inputs=levels + wrong.at[0].set(0.0),
        )

    def matmul(self, x: jax.Array, w: jax.Array, chip: Imperfections, key: jax.Array) -> jax.Array:
        """``x @ w`` as the macro reads it, with the gradients of ``x @ w``.

        Args:
            x: levels, whole numbers from 0 to ``levels - 1``, ``[..., depth]``.
            w: whole numbers that `weight_bits` bits can hold in the encoding, ``[depth, outputs]``.
            chip: from `chip`.
            key: of this read's noise.

        Returns:
            ``[..., outputs]`` float32.

        Raises:
            ValueError: the encoding is not known, or depths differ.
        """
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding is {self.encoding!r}, expected one of {ENCODINGS}")
        if x.shape[-1] != w.shape[0]:
            raise ValueError(f"inputs are {x.shape[-1]} deep and weights {w.shape[0]}; expected the same depth")
        x, w = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
        read = self._read(*jax.lax.stop_gradient((x, w)), chip, key)
        straight = x @ w
        return straight + jax.lax.stop_gradient(read - straight)

    def _read(self, x: jax.Array, w: jax.Array, chip: Imperfections, key: jax.Array) -> jax.Array:
        depth, outputs = w.shape
        tiles = -(-depth // self.rows)
        short = tiles * self.rows - depth
        bits, worth = self._bits(w)
        bits = jnp.pad(bits.reshape(depth, -1), ((0, short), (0, 0)))  # a bit of nothing adds nothing
        bits = bits.reshape(tiles, self.rows, -1)
        here = jnp.arange(bits.shape[-1]) % self.columns
        capacitors = chip.capacitors[:, here]
        charge = bits * (capacitors * (self.rows / jnp.sum(capacitors, axis=0, keepdims=True)))[None]
        driven = jnp.take(chip.inputs, x.astype(jnp.int32), axis=0)
        driven = jnp.pad(driven, [(0, 0)] * (x.ndim - 1) + [(0, short)])
        sums = jnp.einsum("...tr,trc->...tc", driven.reshape(*x.shape[:-1], tiles, self.rows), charge)
        noise = self.noise * jax.random.normal(key, sums.shape)
        read = self._convert(sums, chip.gains[here], chip.offsets[here], chip.bows[here], noise)
        return jnp.sum(read, axis=-2).reshape(*x.shape[:-1], outputs, -1) @ worth

    def _bits(self, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Bits of weights, ``[depth, outputs, weight_bits]``, and what every bit is worth."""
        powers = 2 ** jnp.arange(self.weight_bits)
        signed = self.encoding == "plus_minus"
        # As plus and minus one: w = 2 u - (2^B - 1), where u are the bits as a whole number.
        whole = (w + 2**self.weight_bits - 1) / 2 if signed else w
        whole = whole.astype(jnp.int32)
        bits = jnp.stack([(whole >> i) & 1 for i in range(self.weight_bits)], axis=-1)
        if signed:
            return (2 * bits - 1).astype(jnp.float32), powers.astype(jnp.float32)
        return bits.astype(jnp.float32), powers.at[-1].multiply(-1).astype(jnp.float32)

    def _convert(self, sums: jax.Array, gains: Any, offsets: Any, bows: Any, noise: jax.Array) -> jax.Array:
        """The converters' numbers, in units of the integer product; the last axis is columns."""
        ideal = jnp.isinf(jnp.asarray(self.adc_bits, jnp.float32))
        codes = 2.0 ** jnp.where(ideal, 0.0, self.adc_bits)
        step = jnp.where(ideal, 1.0, 2 * self.clip / codes)
        lowest = -codes / 2 if self.encoding == "plus_minus" else 0.0
        gains, offsets, bows = (x.reshape((1,) * (sums.ndim - 1) + (-1,)) for x in (gains, offsets, bows))
        seen = gains * (sums / step) + offsets + bows * jnp.sin(jnp.pi * sums / self.clip) + noise
        whole = jnp.clip(jnp.round(seen), lowest, lowest + codes - 1)
        return step * jnp.where(ideal, seen, whole)
