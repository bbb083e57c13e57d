"""Whatever the constraint and the architecture, what is compiled gives what the model of masked dense weights gave."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxcomp as jc
from jaxcomp.constraints import Layout
from tests.constraints.test_contract import CONSTRAINTS, OF_KERNELS

WIDTH, TIME, ROWS = 24, 6, 2


def _dense(w, x):
    return jnp.tanh(x @ w)


def _convolution(w, x):
    return jnp.tanh(lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")))


def _recurrent(w, x):
    def step(h, x):
        h = jnp.tanh(x + h @ w)
        return h, h

    return jnp.swapaxes(lax.scan(step, jnp.zeros((ROWS, WIDTH)), jnp.swapaxes(x, 0, 1))[1], 0, 1)


def _stacked(w, x):
    return lax.scan(jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), None)), x, w)[0]


def _heads(w, x):
    y = jnp.einsum("btf,hfg->bthg", x, w)
    return jnp.mean(jax.nn.relu(y), axis=2)


def _normalized(w, x):
    """Every filter of unit length, in half the precision on the way."""
    w = (w / (1e-3 + jnp.linalg.norm(w, axis=0, keepdims=True))).astype(jnp.bfloat16)
    return x @ w.astype(x.dtype)


LAYERS = {  # how each is done, and the layout and shape of its weights
    "dense": (_dense, "io", (WIDTH, WIDTH)),
    "convolution": (_convolution, "hio", (3, WIDTH, WIDTH)),
    "recurrent": (_recurrent, "io", (WIDTH, WIDTH)),
    "stacked": (_stacked, "hio", (3, WIDTH, WIDTH)),
    "heads": (_heads, "hio", (2, WIDTH, WIDTH)),
    "normalized": (_normalized, "io", (WIDTH, WIDTH)),
}


def apply(kinds, params, x):
    for number, kind in enumerate(kinds):
        x = LAYERS[kind][0](params[f"{number} {kind}"], x)
    return x


def check(name, kinds, seed):
    keys = jax.random.split(jax.random.key(seed), len(kinds) + 1)
    params, rules = {}, {}
    for number, (kind, key) in enumerate(zip(kinds, keys, strict=False)):
        _, axes, shape = LAYERS[kind]
        path = f"{number} {kind}"
        params[path] = jax.random.normal(key, shape) / WIDTH**0.5
        if name not in OF_KERNELS or set(axes) - set("io"):
            rules[path] = CONSTRAINTS[name](Layout(axes))
    spec = jc.assign(params, rules)
    params = jc.project(spec, params)
    x = jax.random.normal(keys[-1], (ROWS, TIME, WIDTH))
    model = jc.compile(functools.partial(apply, kinds), params, spec, x, rounds=0)
    want, found = jax.jit(functools.partial(apply, kinds))(params, x), model(x)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    assert len(model.report.products) == sum(f"{number} {kind}" in rules for number, kind in enumerate(kinds))


KINDS = list(LAYERS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if n % 6 == 0 else pytest.mark.slow) for n, name in enumerate(CONSTRAINTS)]
)
def test_every_constraint_compiles_to_the_same_function(name, compiled_quickly):
    number = list(CONSTRAINTS).index(name)
    kind = "convolution" if name in OF_KERNELS else KINDS[number % len(KINDS)]
    check(name, (kind,), number)


@pytest.mark.slow
@settings(max_examples=5)
@given(
    st.sampled_from(list(CONSTRAINTS)), st.lists(st.sampled_from(KINDS), min_size=2, max_size=3), st.integers(0, 2**16)
)
def test_any_architecture_compiles_to_the_same_function(name, kinds, seed):
    check(name, tuple(kinds), seed)
