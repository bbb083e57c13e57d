"""A battery and the levels of frequency and voltage that drain it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._pytree import register_dataclass
from jaxcomp.hwmodels._mode import Exact, Mode


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Battery:
    r"""A charge, spent in shares at levels of frequency ``f_l`` and voltage ``V_l``.

    At level ``l`` the processor draws ``P_l = C V_l ** 2 f_l + static_w``, so a run of ``t_l`` seconds takes

        E_l = P_l t_l,   and a charge lasts   runs = sum_l shares_l * charge_j / E_l.

    A run that takes ``c0 + c1 * density`` cycles ends in time ``T`` at density ``(T f_l - c0) / c1``: the slower the
    level, the sparser the model. Where only the period counts, the rest of it is spent idle, and with much static
    power it pays to run fast and rest (`period_j`).

    The formulas are RT3's as far as they are known; its latencies and accuracies per level are not published. Of its
    kind of table, 400 MHz at 0.916 V has 6.4 times less dynamic energy a run than 1400 MHz at 1.24 V if density falls
    with frequency: (1.24 / 0.916) ** 2 * 3.5. Test: ``tests/hwmodels/test_battery.py``.
    Not validated on: any measured discharge; a charge is taken to give all its energy at any current.

    Args:
        charge_j: joules of a charge.
        clock_hz, voltage_v: of the levels, arrays ``[levels]``.
        shares: of the charge that every level spends, ``[levels]``; they add up to 1.
        capacitance_f: farads switched a cycle.
        static_w, idle_w: watts lost while it runs, and drawn while it waits.

    >>> battery = Battery.odroid_xu3(charge_j=36e3)
    >>> cycles = 140e6 * battery.density(deadline_s=0.1, fixed_cycles=0.0, cycles=140e6)
    >>> energy_j = battery.run_j(cycles / battery.clock_hz)
    >>> f"{float(energy_j[-1] / energy_j[0]):.1f}"
    '6.4'

    References: Song et al., Dancing along Battery (RT3), DAC 2021, arXiv 2102.06336.
    """

    charge_j: Any
    clock_hz: Any
    voltage_v: Any
    shares: Any
    capacitance_f: Any = 1e-9
    static_w: Any = 0.0
    idle_w: Any = 0.0

    @classmethod
    def odroid_xu3(cls, charge_j: Any = 36e3) -> "Battery":
        """Six levels of RT3's board, 400 to 1400 MHz in equal steps, each with an equal share of the charge.

        The voltages of the lowest and the highest level are from memory in the literature page; those between are on
        a line. The default charge, 10 Wh, and the capacitance, 1 nF, are assumptions; ratios do not depend on them.
        """
        return cls(charge_j, np.linspace(400e6, 1400e6, 6), np.linspace(0.916, 1.24, 6), np.full(6, 1 / 6))

    @property
    def power_w(self) -> jax.Array:
        """While it runs, ``[levels]``."""
        return jnp.asarray(self.capacitance_f * self.voltage_v**2 * self.clock_hz + self.static_w)

    def run_j(self, latency_s: Any) -> jax.Array:
        """Joules of one run of so many seconds at every level."""
        return self.power_w * latency_s

    def period_j(self, latency_s: Any, period_s: Any) -> jax.Array:
        """Joules of one run and the wait until the next one; infinite where the run is longer than the period."""
        waits = period_s - latency_s
        return jnp.where(waits >= 0, self.run_j(latency_s) + self.idle_w * waits, jnp.inf)

    def runs(self, energy_j: Any) -> jax.Array:
        """How many runs of so many joules, ``[levels]``, a charge is good for."""
        return jnp.sum(self.shares * self.charge_j / energy_j)

    def density(self, deadline_s: Any, fixed_cycles: Any, cycles: Any, mode: Mode = Exact()) -> jax.Array:
        """The highest density at every level whose run ends in time: at most 1, and 0 where none does.

        Args:
            deadline_s: seconds that a run may take.
            fixed_cycles: that take place at any density.
            cycles: that density shrinks, when dense.
            mode: exact, or smooth: at most 1.1 % less.
        """
        affordable = mode.maximum((deadline_s * self.clock_hz - fixed_cycles) / cycles, 0.0)
        return affordable / mode.maximum(affordable, 1.0)
