"""What every device in closed form must obey, whatever it models: signs, gradients, batching."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._workload import Product
from jaxcomp.hwmodels import Exact, Smooth, Stored

# Sizes that fill no array evenly, so that rounding up is at work, in three shapes of layer.
LAYERS = Product(
    ("conv", "depthwise", "dense"),
    ("conv", "depthwise", "dense"),
    batch=jnp.array([2.0, 1.0, 24.0]),
    groups=jnp.array([1.0, 72.0, 1.0]),
    inputs=jnp.array([48.0, 72.0, 515.0]),
    outputs=jnp.array([83.0, 72.0, 301.0]),
    kernel_h=jnp.array([3.0, 3.0, 1.0]),
    kernel_w=jnp.array([3.0, 3.0, 1.0]),
    in_h=jnp.array([9.0, 13.0, 1.0]),
    in_w=jnp.array([11.0, 12.0, 1.0]),
    out_h=jnp.array([7.0, 11.0, 1.0]),
    out_w=jnp.array([9.0, 10.0, 1.0]),
)


def check_more_never_costs_less(device, **values):
    """Latency, energy and storage never fall as a number of `Stored` rises through the given values."""
    for name, rising in values.items():
        for mode in (Exact(), Smooth()):
            costs = [device.product(LAYERS, Stored(**{name: value}), mode) for value in rising]
            for what in ("latency_s", "energy_j", "weight_bytes"):
                found = np.stack([np.broadcast_to(getattr(cost, what), (3,)) for cost in costs])
                falls = np.diff(found, axis=0) < -1e-6 * np.abs(found[1:])
                assert not falls.any(), f"{what} falls as {name} rises to {rising}, {mode}: {found.tolist()}"


def check_faster_is_never_slower(device, *names):
    """Latency never rises with a number of the device."""
    before = device.product(LAYERS, Stored()).latency_s
    for name in names:
        faster = dataclasses.replace(device, **{name: getattr(device, name) * 1.5})
        assert (faster.product(LAYERS, Stored()).latency_s <= before * (1 + 1e-6)).all(), name


def check_gradients(device, stored, *names, tolerance=1e-3):
    """Derivatives of smooth latency by numbers of `Stored` or of the device are those of central differences."""
    mode = Smooth(width=0.1, offset=0.3)  # so wide that a central difference is a good derivative in float32

    @jax.jit
    def latency(shares):
        """Logarithms, as functions of what each number is multiplied by."""
        ours = {name: getattr(stored, name) * share for name, share in shares.items() if hasattr(stored, name)}
        its = {name: getattr(device, name) * share for name, share in shares.items() if not hasattr(stored, name)}
        scaled, compressed = dataclasses.replace(device, **its), dataclasses.replace(stored, **ours)
        return jnp.log(scaled.product(LAYERS, compressed, mode).latency_s)

    with jax.enable_x64(True):
        ones, step = {name: jnp.float64(1) for name in names}, 3e-4
        slopes = jax.jacfwd(latency)(ones)
        for name in names:
            up, down = (latency(ones | {name: jnp.float64(1 + h)}) for h in (step, -step))
            np.testing.assert_allclose(
                slopes[name], (up - down) / (2 * step), rtol=tolerance, atol=tolerance, err_msg=name
            )


def check_batched(device, name, values, stored=Stored()):
    """One vmapped and jitted program over a number of the device gives what a loop gives, traced once."""
    traces = 0

    def cost(value):
        nonlocal traces
        traces += 1
        return dataclasses.replace(device, **{name: value}).product(LAYERS, stored)

    compiled = jax.jit(jax.vmap(cost))
    together = compiled(jnp.asarray(values, jnp.float32))
    compiled(jnp.asarray(values, jnp.float32) * 2)
    assert traces == 1
    for i, value in enumerate(values):
        alone = dataclasses.replace(device, **{name: value}).product(LAYERS, stored)
        one = jax.tree.map(lambda x, i=i: x[i], together)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, alone)
