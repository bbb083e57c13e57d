"""Analog-to-digital converters: what a conversion costs by its bits, and how many bits a read needs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp._pytree import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Converter:
    r"""A successive-approximation converter of one design, at any number of bits.

    Logic and clock grow with the bits ``n``, the capacitors that they switch by a power of two or four:

        energy_j(n)   = scale * (linear_j * n + growing_j * base ** n) * voltage ** 2
        area_um2(n)   = linear_um2 * n + growing_um2 * base ** n

    Measured on ``isaac_forms_component_actions.csv``: two constants each from the rows of 4 and 8 bits, and the rows
    of 5, 6, 7, 9 and 10 bits differ by 0.4 % at most in energy and 0.01 % in area. That table is itself scaled from one
    published point by such a law, so this checks the form, not the silicon.
    Not validated on: any measured converter at more than one width. Speed is the device's.

    Args:
        linear_j, growing_j: joules a bit, and joules that `base` to the bits multiplies, both at 1 V.
        base: 2 where capacitors are as small as matching allows, 4 where noise decides.
        linear_um2, growing_um2: square micrometres, likewise; NaN where they are not known.
        voltage: supply, in volts.
        scale: what multiplies the energy of a design that is better or worse by the same factor at every width.

    >>> adc = Converter.isaac()
    >>> [round(float(adc.energy_j(bits)) * 1e12, 2) for bits in (4, 6, 8)]
    [0.79, 1.2, 1.67]

    References: Shafiee et al., ISAAC, ISCA 2016; Mei et al., ZigZag, IEEE TC 2021.
    """

    linear_j: Any
    growing_j: Any
    base: Any = 2.0
    linear_um2: Any = jnp.nan
    growing_um2: Any = jnp.nan
    voltage: Any = 1.0
    scale: Any = 1.0

    def energy_j(self, bits: Any) -> jax.Array:
        """Joules of one conversion."""
        return self.scale * (self.linear_j * bits + self.growing_j * self.base**bits) * self.voltage**2

    def area_um2(self, bits: Any) -> jax.Array:
        """Square micrometres of one converter."""
        return self.linear_um2 * bits + self.growing_um2 * self.base**bits

    @classmethod
    def isaac(cls) -> "Converter":
        """ISAAC's, 32 nm, 1.2 GS/s: through 0.79 pJ and 361.04 um2 at 4 bits, 1.67 pJ and 1200 um2 at 8 bits."""
        return cls(
            linear_j=195.893e-15,  # 4 a + 16 c = 0.79 pJ, 8 a + 256 c = 1.67 pJ
            growing_j=0.401786e-15,
            linear_um2=81.7257,  # 4 a + 16 c = 361.04 um2, 8 a + 256 c = 1200 um2
            growing_um2=2.13357,
        )

    @classmethod
    def forms(cls) -> "Converter":
        """FORMS', 32 nm, 2.1 GS/s: 32 of 4 bits take 15.2 mW and 0.0091 mm2. Other widths by ISAAC's law, assumed."""
        isaac, smaller = cls.isaac(), 284.375 / 361.04
        return dataclasses.replace(
            isaac,
            linear_um2=isaac.linear_um2 * smaller,
            growing_um2=isaac.growing_um2 * smaller,
            scale=15.2e-3 / 32 / 2.1e9 / 0.79e-12,
        )

    @classmethod
    def switched_capacitor(cls, node_nm: float = 28.0, voltage: float = 0.9) -> "Converter":
        """ZigZag's for compute in memory: 100 fF a bit and 1 aF times four to the bits at 28 nm.

        Capacitance is taken to grow with the node, a crude rule that the source does not give.
        """
        return cls(100e-15 * node_nm / 28, 1e-18 * node_nm / 28, base=4.0, voltage=voltage)


def survey(bits: Any, node_nm: Any, rate_hz: Any) -> tuple[jax.Array, jax.Array]:
    r"""The best converters of a public survey, by regression.

    With ``F = min(213.78 - 2.872 ln rate, 128.31 + 3.2205 ceil(bits))`` the figure of merit in dB,

        energy_pJ = 0.5 * 10 ** (-(F - 6.02 bits - 1.76) / 10) * exp(24.58 + 1.880 ln node) / bits ** 2.829
        area_um2  = exp(0.9933 ln node + 0.1807 ln rate + 0.2991 ln energy_pJ + 1.3462)

    A trend over designs, far from single ones. At 8 bits, 32 nm, 1.2 GS/s it gives 1.846 pJ for ISAAC's 1.667 (11 %
    above) and 6311 um2 for its 1200; at 7 bits, 65 nm, 35 MS/s 4.97 pJ, about twice what CAP-RAM takes for a column
    and its converter together. Calibrate it with one factor to a design before use.

    Args:
        bits: effective bits, 4 or more; the regression saw no fewer.
        node_nm: technology.
        rate_hz: conversions a second.

    Returns:
        Joules of a conversion, and square micrometres of a converter.

    >>> energy_j, area_um2 = survey(8, 32, 1.2e9)
    >>> round(float(energy_j) * 1e12, 3), round(float(area_um2))
    (1.846, 6311)

    References: Andrulis et al., an open model of converters, MIT; Murmann's survey of converters.
    """
    bits, node, rate = (jnp.asarray(x, float) for x in (bits, node_nm, rate_hz))
    cap = _CAP_DB + _CAP_DB_PER_BIT * jnp.ceil(bits)  # of the survey's regression, whole bits in any mode
    merit = jnp.minimum(213.7806687348118 - 2.8719030399529957 * jnp.log(rate), cap)
    ideal = 0.5 * 10 ** (-(merit - (6.02 * bits + 1.76)) / 10)
    log_pj = jnp.log(ideal) + 26.0496215686518 + 1.8800369206815004 * jnp.log(node)
    log_pj += -2.8291256050594527 * jnp.log(bits) - 1.4702022133784405
    log_um2 = 0.9932794744745022 * jnp.log(node) + 0.18071538424508238 * jnp.log(rate)
    return jnp.exp(log_pj) * 1e-12, jnp.exp(log_um2 + 0.29912426192653485 * log_pj + 1.3461916439910742)


_CAP_DB, _CAP_DB_PER_BIT = 128.3068287398817, 3.2205523


def needed_bits(rows: Any, cell_bits: Any, input_bits: Any = 1, flipped: bool = True) -> jax.Array:
    """Bits that lose nothing of a column's sum: ``log2(rows) + cell_bits + input_bits - 1``.

    One less when columns whose sum would be large store their complement (`flipped`), as ISAAC and FORMS do.

    Args:
        rows: read together.
        cell_bits: of a cell.
        input_bits: driven at a time.

    >>> float(needed_bits(128, 2)), float(needed_bits(8, 2))  # ISAAC's 8 and FORMS' 4
    (8.0, 4.0)
    """
    return jnp.log2(jnp.asarray(rows, float)) + cell_bits + input_bits - (2 if flipped else 1)
