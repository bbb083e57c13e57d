"""Phones' processors: a roofline with launch overhead, calibrated by blocks that were timed."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxcomp._pytree import register_dataclass
from jaxcomp._workload import Product
from jaxcomp.hwmodels._device import Device, ProductCost
from jaxcomp.hwmodels._mode import Exact, Mode
from jaxcomp.hwmodels._operands import operands
from jaxcomp.hwmodels._share import share
from jaxcomp.hwmodels._stored import Stored

# At what share of the dense rate the weights that a scheme keeps are multiplied; 0: zeros are multiplied too. Whole
# filters and channels make a smaller dense product. The order is what papers report of compiled kernels, block and
# pattern slightly below dense, single weights far below; the numbers are assumptions, from no measurement.
SCHEMES = {"dense": 0.0, "filter": 0.0, "block": 0.9, "pattern": 0.8, "unstructured": 0.3}


@register_dataclass
@dataclasses.dataclass(frozen=True)
class MobileCpu(Device):
    r"""One core of a phone: a roofline, and what every layer costs beside it.

        latency = repeat * launch_s + activations + max(arithmetic, weights)

        arithmetic    MACs of kept rows and columns * share / (MACs a cycle * clock_hz)
        weights       stored bytes / bandwidth
        activations   bytes in and out / activation_bandwidth

    Depthwise layers have a rate of their own. Within kept rows and columns a share ``r`` of weights is kept, and they
    are multiplied at ``efficiency`` of the dense rate, or densely where that is faster: ``share = min(1, r /
    efficiency)``. Energy is power times latency: ``capacitance_f * voltage_v ** 2 * clock_hz`` and ``static_w``.
    Latency in smooth mode is at most 1.1 % above or below the exact one.

    Calibrated and measured on ``mobile_cpu_block_latency_ms.csv``: expanded convolutions, whole layers and classifiers
    as TensorFlow Lite ran them, in numbers of 32 bits (so give ``weight_bits=32, activation_bits=32``; the table does
    not say so itself). Rows are dealt to two halves by a hash of their shape; one half gave the constants, by a
    robust fit of logarithms, and the other these errors:

        phone     rows   median   mean    fit in the literature page, of all rows, mean
        pixel1      22   4.0 %    9.9 %   13.8 %
        note10     166   5.0 %    6.2 %   4.6 to 6.4 %, one fit for each resolution; here is one for all five

    The other half is clean of the constants, not of the form: eight forms (terms added or the larger taken; one
    bandwidth for all, the memory's published peak, or one for weights and one for activations) were compared with
    the errors of both halves in sight, and classifiers decided for two bandwidths. The four forms with two differ by
    2.4 points at most in the median of either phone; this is not the one with the least.
    Largest errors: the first block of the Pixel (too slow by 89 %), full 3 x 3 convolutions of three channels (too
    fast by 40 %). Test: ``tests/hwmodels/test_mobile_cpu.py``.
    Not validated on: sparsity, bits other than 32, batches, several cores, attention, energy.

    Args:
        clock_hz: cycles a second.
        macs_per_cycle, depthwise_per_cycle: multiplications with additions, of dense and of depthwise layers.
        bandwidth, activation_bandwidth: bytes a second, of weights and of activations.
        launch_s: seconds a layer takes however small.
        efficiency: of kept weights, see `running`; a number or one for each product.
        voltage_v, capacitance_f, static_w: volts, farads switched a cycle, watts that are lost when running.

    >>> from jaxcomp._workload import Product, Workload
    >>> layers = Workload((Product("expand", "expand/kernel", 1, 1, 32, 192, 1, 1, 28, 28, 28, 28),))
    >>> phone, floats = MobileCpu.note10(), Stored(weight_bits=32, activation_bits=32)
    >>> f"{float(phone.cost(layers, floats).latency_s) * 1e3:.3f} ms"
    '0.348 ms'
    >>> sparse = Stored(weight_bits=32, activation_bits=32, density=0.25)
    >>> f"{float(phone.running('pattern').cost(layers, sparse).latency_s) * 1e3:.3f} ms"
    '0.125 ms'

    References: Cai et al., ProxylessNAS, ICLR 2019, arXiv 1812.00332, and Once-for-all, ICLR 2020, arXiv 1908.09791
    (tables); Williams et al., Roofline, CACM 2009.
    """

    clock_hz: Any
    macs_per_cycle: Any
    depthwise_per_cycle: Any
    bandwidth: Any
    activation_bandwidth: Any
    launch_s: Any
    efficiency: Any = 0.0
    voltage_v: Any = jnp.nan
    capacitance_f: Any = jnp.nan
    static_w: Any = 0.0

    @classmethod
    def pixel1(cls) -> "MobileCpu":
        """Google Pixel 1, 2.15 GHz.

        No row of the calibrating half is bound by weights: their bandwidth is half of the published peak of its
        memory (29.8 GB/s). The one row that is, the classifier, is held out and was known: it asks for 16.5 GB/s.
        """
        return cls(2.15e9, 3.62, 1.425, 14.9e9, 1.0536e9, 3.56e-8)

    @classmethod
    def note10(cls) -> "MobileCpu":
        """Samsung Galaxy Note10, 2.73 GHz."""
        return cls(2.73e9, 5.441, 1.8283, 9.253e9, 4.696e10, 8.339e-6)

    def running(self, scheme: str) -> "MobileCpu":
        """With kernels compiled for a scheme of sparsity: dense, filter, block, pattern or unstructured.

        Raises:
            ValueError: for an unknown scheme.
        """
        if scheme not in SCHEMES:
            raise ValueError(f"scheme is {scheme!r}, expected one of {list(SCHEMES)}; or set `efficiency` itself")
        return dataclasses.replace(self, efficiency=SCHEMES[scheme])

    def at(self, clock_hz: Any, voltage_v: Any) -> "MobileCpu":
        """At another level of frequency and voltage. Memory keeps its pace, and so do launches."""
        return dataclasses.replace(self, clock_hz=clock_hz, voltage_v=voltage_v)

    def product(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> ProductCost:
        o = operands(product, stored)
        inner = share(stored.density, stored.input_density * stored.output_density)
        busy = share(inner, mode.maximum(inner, self.efficiency))
        per_cycle = jnp.where(product.depthwise, self.depthwise_per_cycle, self.macs_per_cycle)
        terms = {
            "arithmetic": o.macs * busy / (per_cycle * self.clock_hz),
            "weights": product.repeat * o.weight_bytes / self.bandwidth,
            "activations": product.repeat * (o.reads + o.writes) * o.activation_bits / 8 / self.activation_bandwidth,
            "launch": product.repeat * self.launch_s,
        }
        bound = mode.maximum(terms["arithmetic"], terms["weights"])
        latency_s = terms["launch"] + terms["activations"] + bound
        return ProductCost(
            latency_s=latency_s,
            latency_terms=terms,
            energy_terms={
                "dynamic": self.capacitance_f * self.voltage_v**2 * self.clock_hz * latency_s,
                "static": self.static_w * latency_s,
            },
            weight_bytes=stored.weight_bytes(product),
            utilization=share(o.macs * busy, latency_s * self.macs_per_cycle * self.clock_hz),
        )
