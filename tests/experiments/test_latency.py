"""What is said of a compiled network beside the dense one, and of products that stayed dense."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxcomp as jc
from experiments import _latency as latency


def test_both_networks_are_called_and_give_the_same():
    spec = {"w": jc.Sparse(0.1, view=jc.inputs())}
    params = jc.project(spec, {"w": jax.random.normal(jax.random.key(0), (256, 256))})
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 256)), jnp.float32)
    found = latency.measured(lambda params, x: jnp.tanh(x @ params["w"]), params, spec, x, pairs=3)
    assert found.batch == 4 and found.difference < 1e-4
    assert found.dense_s > 0 and found.compiled_s > 0 and found.faster > 0 and found.bytes_ratio >= 1
    assert len(found.packed) + len(found.stayed) == 1


def test_products_that_stayed_dense_say_what_was_tried():
    tried = [("dense", 1e-3), ("slow", 3e-3), ("less slow", 2e-3)]
    stayed = {"conv2": latency._best(tried), "conv3": latency._best(tried[:1])}
    found = latency.Latency(4, 2e-3, 1e-3, 2.0, 1.5, 0.0, 0, {"conv4": "strips"}, stayed, ("a note",))
    assert latency.forms({"net": [found]}) == [
        "net, batch 4: conv4: strips",
        "net, batch 4: conv2: dense (less slow takes 2.00 times as long)",
        "net, batch 4: conv3: dense (no form is expected to be faster)",
        "net, batch 4: a note",
    ]
