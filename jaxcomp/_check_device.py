"""The contract that hardware plugged into jaxcomp must keep."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._check_pytree import check_pytree
from jaxcomp._workload import Workload
from jaxcomp.hwmodels import Device, Exact, Mode, ProductCost, Smooth, Stored

_FASTER = ("clock_hz", "bandwidth", "words_per_cycle")
_STEP = 2e-3  # of a central difference, in shares of a number
_ROUNDING = 1e-5  # relative
_SMOOTH = Smooth(width=0.1, offset=0.3)  # steps wide enough for central differences in float32


def check_device(
    device: Device,
    workload: Workload,
    stored: Stored = Stored(),
    *,
    gap: float,
    faster: tuple[str, ...] = _FASTER,
    tolerance: float = 1e-3,
) -> None:
    """Assert that a device keeps its contract on the products of a workload.

    - It is a pytree whose structure is hashable, and no number of it is static.
    - Latency is finite, above zero and no less than each of its terms; energy by component, stored bytes and
      utilization are not negative, where they are known, and in exact mode nothing is used more than fully.
    - More bits or a higher density never cost less time, energy or storage, and a higher clock or bandwidth no
      time.
    - Smooth mode differs from exact by no more than `gap`.
    - Derivatives of smooth latency and energy by all numbers of the device and of `stored` are those of central
      differences, except where a kink is so near that differences of two widths disagree.
    - `jax.jit` agrees with a plain call, one compiled program serves all values of the numbers, and `jax.vmap` over
      devices is a loop over them.
    - `cost` gives the sums of what `product` gives.

    Args:
        device: what to test.
        workload: products that it can run; of sizes that fill nothing evenly, so that rounding up is at work.
        stored: how weights are stored, as numbers or arrays ``[products]``.
        gap: the bound that the device documents for smooth mode: ``|smooth / exact - 1|`` of latency and energy.
        faster: names of fields of the device that never make it slower.
        tolerance: of derivatives, relative and in units of one percent per percent.

    Raises:
        AssertionError: names the device and the property that fails.

    >>> from jaxcomp._workload import Product
    >>> from jaxcomp.hwmodels._systolic import Systolic
    >>> layers = Workload((Product("conv", "w", 1, 1, 24, 83, 3, 3, 9, 9, 7, 7), Product("dense", "v", 5, 1, 515, 301)))
    >>> array = Systolic(16, 12, bandwidth=2e9, buffer_bytes=8e3)
    >>> check_device(array, layers, Stored(weight_bits=5.0, output_density=0.7), gap=0.05)
    """
    test = _DeviceTest(device, workload, stored)
    check_pytree(device, test.require)
    test.costs_are_plausible()
    test.more_costs_more(faster)
    test.smooth_is_near_exact(gap)
    test.derivatives_are_differences(tolerance)
    test.agrees_under_transformations()
    test.totals_are_sums()


class _DeviceTest:
    def __init__(self, device: Device, workload: Workload, stored: Stored):
        self.device, self.workload, self.traces = device, workload, 0
        self.stored = jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x, float), len(workload)), stored)
        self.products = workload.stacked

        def product(device: Device, stored: Stored, mode: Mode) -> ProductCost:
            self.traces += 1
            return self.whole(device.product(self.products, stored, mode))

        self._exact = jax.jit(lambda device, stored: product(device, stored, Exact()))
        self._smooth = jax.jit(lambda device, stored: product(device, stored, _SMOOTH))

    def whole(self, found: ProductCost) -> ProductCost:
        return jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x, float), len(self.workload)), found)

    def require(self, holds: Any, claim: str) -> None:
        if not holds:
            raise AssertionError(f"{type(self.device).__name__} on {len(self.workload)} products: {claim}")

    def costs_are_plausible(self) -> None:
        for found in (self._exact(self.device, self.stored), self._smooth(self.device, self.stored)):
            latency = found.latency_s
            self.require(np.isfinite(latency).all() and (latency > 0).all(), f"latency_s is {latency}, not above zero")
            for name, term in found.latency_terms.items():
                self.require(
                    ((0 <= term) & (term <= latency * (1 + _ROUNDING))).all(),
                    f"latency_terms[{name!r}] is {term}, not from zero to latency_s, {latency}",
                )
            known = {f"energy_terms[{name!r}]": term for name, term in found.energy_terms.items()}
            for name, x in (known | {"weight_bytes": found.weight_bytes, "utilization": found.utilization}).items():
                self.require(not (x < 0).any(), f"{name} is {x}, expected none below zero")
        used = self._exact(self.device, self.stored).utilization  # where smooth, rounding up is rounding down by less
        self.require(not (used > 1 + _ROUNDING).any(), f"utilization is {used}, expected at most one")

    def more_costs_more(self, faster: tuple[str, ...]) -> None:
        shares = (0.5, 0.75, 1.0)
        for field in dataclasses.fields(self.stored):
            if field.name in ("index_bits", "side_bits"):  # zero as a rule: a share of them is no change
                continue
            rising = [
                self._exact(self.device, dataclasses.replace(self.stored, **{field.name: value}))
                for value in (getattr(self.stored, field.name) * share for share in shares)
            ]
            for what in ("latency_s", "energy_j", "weight_bytes"):
                self._monotone([getattr(found, what) for found in rising], f"{what} falls as {field.name} rises")
        for path, leaf in _numbers(self.device):
            if _field(path) in faster:
                slower = [self._exact(_replaced(self.device, path, leaf * share), self.stored) for share in shares]
                self._monotone([-found.latency_s for found in slower], f"latency_s rises with {_name(path)}")

    def _monotone(self, rising: list[jax.Array], claim: str) -> None:
        for before, after in itertools.pairwise(rising):
            self.require(not (after - before < -_ROUNDING * np.abs(before)).any(), f"{claim}: {np.stack(rising)}")

    def smooth_is_near_exact(self, gap: float) -> None:
        exact = self._exact(self.device, self.stored)
        smooth = self.whole(self.device.product(self.products, self.stored, Smooth()))
        for what in ("latency_s", "energy_j"):
            before, after = np.asarray(getattr(exact, what)), np.asarray(getattr(smooth, what))
            off = np.abs(np.divide(after, before, out=np.ones_like(before), where=before > 0) - 1)
            self.require(not (off > gap + _ROUNDING).any(), f"smooth {what} is off by {off}, expected at most {gap}")

    def derivatives_are_differences(self, tolerance: float) -> None:
        numbers = [path for path, leaf in _numbers((self.device, self.stored)) if jnp.isfinite(leaf).all()]

        @jax.jit
        def costs(shares):
            both = (self.device, self.stored)
            leaves = dict(_numbers(both))
            for path, share in zip(numbers, shares, strict=True):
                both = _replaced(both, path, leaves[path] * share)
            found = self.whole(both[0].product(self.products, both[1], _SMOOTH))
            # Logarithms: all slopes are of the same size, and float32 is as good for large numbers as for small.
            return jnp.log(jnp.stack([found.latency_s, found.energy_j]))

        ones = jnp.ones(len(numbers))
        slope = jax.jit(lambda towards: jax.jvp(costs, (ones,), (towards,))[1])
        here, compared = costs(ones), 0
        for i, path in enumerate(numbers):
            above, below, near, nearer = (costs(ones.at[i].add(h)) for h in _STEP * np.array([1, -1, 0.5, -0.5]))
            wide, narrow = (above - below) / (2 * _STEP), (near - nearer) / _STEP
            slack = tolerance * (1 + np.abs(narrow))
            given = slope(jnp.zeros_like(ones).at[i].set(1))
            # Neither a kink nor a jump in reach; both comparisons are also false of what is not known, NaN.
            smooth = (np.abs(wide - narrow) < slack / 2) & (
                np.abs(above + below - 2 * here) < 0.1 * _STEP * slack / tolerance
            )
            self.require(
                (np.abs(given - narrow) <= slack)[smooth].all(),
                f"derivatives by {_name(path)} are {given}, differences {narrow} (of latency; of energy)",
            )
            compared += smooth.sum()
        self.require(compared, "no derivative could be compared: kinks are everywhere")

    def agrees_under_transformations(self) -> None:
        plain = self.whole(self.device.product(self.products, self.stored, Exact()))
        self._same(plain, self._exact(self.device, self.stored), "jax.jit differs from a plain call")
        devices = [
            jax.tree.map(lambda x, s=share: jnp.asarray(x, float) * s, self.device) for share in (1.0, 0.75, 0.5)
        ]
        before = self.traces
        alone = [self._exact(device, self.stored) for device in devices]
        self.require(self.traces <= before + 1, f"numbers of one shape were traced {self.traces - before} times")
        together = jax.jit(jax.vmap(self._exact, (0, None)))(
            jax.tree.map(lambda *x: jnp.stack(x), *devices), self.stored
        )
        looped = jax.tree.map(lambda *x: jnp.stack(x), *alone)
        self._same(looped, together, "jax.vmap over devices differs from a loop over them")

    def _same(self, a: ProductCost, b: ProductCost, claim: str) -> None:
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            self.require(np.allclose(x, y, _ROUNDING, 0, equal_nan=True), f"{claim}: {x} and {y}")

    def totals_are_sums(self) -> None:
        total, found = self.device.cost(self.workload, self.stored), self._exact(self.device, self.stored)
        for what in ("latency_s", "energy_j"):
            summed = jnp.sum(getattr(found, what))
            given = getattr(total, what)
            same = np.allclose(given, summed, _ROUNDING, 0, equal_nan=True) or not found.energy_terms
            self.require(same, f"cost has {what} {given}, the products {summed}")
        most = jnp.sum(found.weight_bytes) * (1 + _ROUNDING)
        self.require(total.weight_bytes <= most, f"cost stores {total.weight_bytes} bytes, the products {most}")
        self.require(not total.area_mm2 < 0, f"area_mm2 is {total.area_mm2}, below zero")


def _numbers(tree: Any) -> list[tuple[Any, jax.Array]]:
    return [(path, jnp.asarray(leaf, float)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _replaced(tree: Any, path: Any, value: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda where, leaf: value if where == path else leaf, tree)


def _field(path: Any) -> str:
    return getattr(path[-1], "name", "")


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path).lstrip(".")
