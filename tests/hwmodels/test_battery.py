"""Levels, shares and what a charge is good for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp._workload import Product, Workload
from jaxcomp.hwmodels import Smooth, Stored
from jaxcomp.hwmodels._battery import Battery
from jaxcomp.hwmodels._mobile_cpu import MobileCpu

CLOCKS, VOLTS = np.array([400e6, 900e6, 1400e6]), np.array([0.9, 1.05, 1.24])


def battery(static_w=0.0, idle_w=0.0, shares=(0.2, 0.3, 0.5), volts=VOLTS):
    return Battery(1e4, CLOCKS, volts, np.array(shares), 1e-9, static_w, idle_w)


def test_lower_voltage_and_proportional_density_save_6_4_times():
    levels = Battery.odroid_xu3()
    density = levels.density(0.1, 0.0, 140e6)
    np.testing.assert_allclose(density, levels.clock_hz / 1400e6, rtol=1e-6)
    energy_j = levels.run_j(density * 140e6 / levels.clock_hz)
    assert float(energy_j[-1] / energy_j[0]) == pytest.approx(6.4, abs=0.02)
    # The same model at all levels gains by voltage alone.
    dense = levels.run_j(140e6 / levels.clock_hz)
    assert float(dense[-1] / dense[0]) == pytest.approx(1.83, abs=0.005)


def test_runs_are_shares_of_the_charge_over_the_energy_of_a_run():
    cycles, static = 5e7, 0.3
    expected = 0.0
    for clock, volt, share in zip(CLOCKS, VOLTS, (0.2, 0.3, 0.5), strict=True):
        expected += share * 1e4 / ((1e-9 * volt**2 * clock + static) * cycles / clock)
    levels = battery(static)
    assert float(levels.runs(levels.run_j(cycles / CLOCKS))) == pytest.approx(expected, rel=1e-6)


@given(st.floats(0.5, 0.99), st.floats(0, 2))
def test_lower_voltage_gives_more_runs(lower, static):
    before, after = battery(static), battery(static, volts=VOLTS * lower)
    latency = 5e7 / CLOCKS
    assert float(after.runs(after.run_j(latency))) > float(before.runs(before.run_j(latency)))


def test_static_power_moves_the_best_level_up():
    cycles, period = 3e7, 0.1
    best = [
        int(jnp.argmin(battery(static, 0.05).period_j(cycles / CLOCKS, period))) for static in np.linspace(0, 3, 13)
    ]
    assert best[0] == 0 and best[-1] == 2 and best == sorted(best)


def test_a_run_longer_than_the_period_is_no_choice():
    assert np.isinf(battery().period_j(5e7 / CLOCKS, 0.1)[0]) and np.isfinite(battery().period_j(5e7 / CLOCKS, 0.1)[1])


def test_fixed_cycles_cap_the_density_and_too_many_leave_none():
    levels = battery()
    np.testing.assert_allclose(levels.density(0.1, 60e6, 40e6), [0.0, 0.75, 1.0], rtol=1e-6)
    np.testing.assert_allclose(levels.density(0.1, 60e6, 40e6, Smooth()), [0.0, 0.75, 1.0], rtol=0.011)


def test_gradients_reach_the_number_of_runs_and_levels_batch():
    def runs(scale):
        levels = battery(0.2)
        return levels.runs(levels.run_j(scale * 5e7 / CLOCKS))

    assert float(jax.grad(runs)(1.0)) == pytest.approx(-float(runs(1.0)), rel=1e-5)
    phone = MobileCpu(**{**vars(MobileCpu.note10()), "capacitance_f": 1e-9, "static_w": 0.2})
    layers = Workload((Product("w", "w", 1, 1, 256, 256, 1, 1, 28, 28, 28, 28),))
    cost = jax.vmap(lambda clock, volt: phone.at(clock, volt).cost(layers, Stored()))(CLOCKS, VOLTS)
    np.testing.assert_allclose(cost.energy_j, battery(0.2).run_j(cost.latency_s), rtol=1e-5)
