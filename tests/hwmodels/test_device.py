"""The base of devices: totals of a workload, what binds, and the contract that finds devices that break it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcomp as jc
from jaxcomp._check_device import check_device
from jaxcomp._workload import Product, Tensor, Workload
from jaxcomp.hwmodels import Device, Exact, ProductCost, Smooth, Stored

TWO = Workload(
    (Product("a", "w1", 32, 1, 784, 300), Product("b", "w2", 32, 1, 300, 10)),
    (Tensor("x", 32 * 784, -1, 0), Tensor("h", 32 * 300, 0, 1), Tensor("y", 320, 1, 2)),
)


@jc.register_dataclass
@dataclasses.dataclass(frozen=True)
class Roof(Device):
    """A roofline with whole groups of outputs."""

    macs_per_s: Any = 1e9
    bandwidth: Any = 1e8
    lanes: Any = 64.0

    def product(self, product, stored, mode=Exact()):
        size = stored.weight_bytes(product)
        lanes = mode.ceil(product.columns * stored.output_density / self.lanes) * self.lanes
        terms = {
            "compute": product.rows * product.depth * lanes / self.macs_per_s,
            "weights": size / self.bandwidth,
        }
        latency = mode.maximum(*terms.values())
        used = product.macs * stored.output_density / self.macs_per_s / latency
        return ProductCost(latency, terms, {"mac": product.macs * stored.density * 1e-12}, size, used)


def test_totals_are_sums_over_products():
    cost = Roof().cost(TWO)
    compute = 32 * 784 * 320 / 1e9, 32 * 300 * 64 / 1e9
    weights = 784 * 300 / 1e8, 300 * 10 / 1e8
    each = [max(a, b) for a, b in zip(compute, weights, strict=True)]
    np.testing.assert_allclose(cost.products.latency_s, each, rtol=1e-6)
    assert float(cost.latency_s) == pytest.approx(sum(each))
    assert float(cost.energy_j) == pytest.approx(TWO.macs * 1e-12)
    assert float(cost.weight_bytes) == 784 * 300 + 300 * 10
    assert cost.binds == ["compute", "compute"] and Roof(1e12).cost(TWO).binds == ["weights", "weights"]
    assert np.isnan(cost.area_mm2)


def test_activations_need_the_most_that_is_alive_at_once():
    assert float(Roof().cost(TWO).activation_bytes) == 32 * (784 + 300)
    assert float(Roof().cost(TWO, Stored(activation_bits=4.0)).activation_bytes) == 16 * (784 + 300)


def test_a_cost_prints_its_products_and_its_total():
    lines = str(Roof().cost(TWO)).splitlines()
    assert any("a" in line and "compute" in line for line in lines) and any("total" in line for line in lines)
    assert "peak activations 34,688 bytes" in lines[-1]


def test_one_call_does_a_sweep_of_devices_and_a_derivative():
    clocks = jnp.array([1e8, 1e9, 1e10])
    many = jax.jit(jax.vmap(lambda m: Roof(m).cost(TWO).latency_s))(clocks)
    np.testing.assert_allclose(many, [Roof(float(m)).cost(TWO).latency_s for m in clocks], rtol=1e-6)
    slope = jax.grad(lambda m: Roof(m).cost(TWO, mode=Smooth()).latency_s)(1e9)
    assert float(slope) == pytest.approx(-float(Roof().cost(TWO).products.latency_s.sum()) / 1e9, rel=0.02)


def test_a_class_without_product_says_what_to_write():
    with pytest.raises(NotImplementedError, match=r"Empty must define product\(product, stored, mode\)"):
        type("Empty", (Device,), {})().product(TWO.stacked, Stored())


def breaks(claim, change=None, **options):
    """The contract refuses a device whose costs are changed, and says why."""

    @jc.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Broken(Roof):
        def product(self, product, stored, mode=Exact()):
            cost = super().product(product, stored, mode)
            return dataclasses.replace(cost, **change(self, stored, mode, cost)) if change else cost

    with pytest.raises(AssertionError, match=claim):
        check_device(Broken(), TWO, Stored(weight_bits=6.0, output_density=0.7), **({"gap": 0.5} | options))


def test_the_contract_passes_a_sound_device():
    check_device(Roof(), TWO, Stored(weight_bits=6.0, output_density=0.7), gap=0.5)


def test_the_contract_refuses_negative_and_impossible_costs():
    breaks("latency_s is .* not above zero", lambda d, s, m, c: {"latency_s": -c.latency_s})
    breaks("energy_terms.*none below zero", lambda d, s, m, c: {"energy_terms": {"mac": -c.weight_bytes}})
    breaks("utilization is .* at most one", lambda d, s, m, c: {"utilization": c.utilization + 1})
    breaks(r"latency_terms\['compute'\].*not from zero to latency_s", lambda d, s, m, c: {"latency_s": c.latency_s / 2})


def test_the_contract_refuses_wrong_signs():
    breaks("energy_j falls as weight_bits rises", lambda d, s, m, c: {"energy_terms": {"x": 1 / s.weight_bits}})
    slow = {"claim": "latency_s rises with bandwidth"}
    breaks(**slow, change=lambda d, s, m, c: {"latency_s": c.latency_s * (1 + d.bandwidth / 1e8)})


def test_the_contract_refuses_a_wide_gap():
    breaks("smooth latency_s is off by", gap=0.0)


def test_the_contract_refuses_wrong_derivatives():
    def stopped(d, s, m, c):
        return {"energy_terms": {"mac": jax.lax.stop_gradient(c.energy_j)}}

    breaks("(?s)derivatives by .*density are .*differences", stopped)


def test_the_contract_refuses_numbers_that_are_static_and_classes_that_are_no_pytrees():
    @dataclasses.dataclass(frozen=True)
    class Plain(Roof):
        pass

    @jc.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Fixed(Roof):
        clock: float = dataclasses.field(default=1e9, metadata={"static": True})

    for device, claim in ((Plain(), "is not a pytree"), (Fixed(), "has a static number, clock")):
        with pytest.raises(AssertionError, match=claim):
            check_device(device, TWO, gap=0.5)
