"""What shrink removes: channels that no output needs, and nothing of what the network gives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from jaxcomp._paths import leaves_by_path, replace
from jaxcomp.compiler import _resize
from jaxcomp.compiler._shrink import shrink
from jaxcomp.tracing import couplings
from tests.networks import Bert, MobileNetV2, Recurrent, ResNet18
from tests.tracing.test_couplings import IMAGE, MLP, NETWORKS, X, arrays, blocks, perceptron, shapes_of

relu = jax.nn.relu


def drawn(network, *inputs, seed=0):
    """Parameters of a flax network, none of which is near zero; statistics are positive."""
    rng = np.random.default_rng(seed)
    shapes = leaves_by_path(variables := jax.eval_shape(network.init, jax.random.key(0), *inputs))
    leaves = {}
    for path, x in shapes.items():
        scale = 1 / np.sqrt(max(1, np.prod(x.shape[:-1])))
        sign = 1 if path.endswith(("var", "scale")) else rng.choice([-1, 1], x.shape)
        leaves[path] = jnp.asarray(rng.uniform(0.5, 1.5, x.shape) * sign * scale, x.dtype)
    return replace(variables, leaves)


def masked(apply, params, *inputs, seed=0):
    """Random channels of every prunable coupling set to zero, one at least left; and which are left, by members."""
    rng, left = np.random.default_rng(seed), {}
    for coupling in couplings(apply, params, *inputs):
        if coupling.prunable:
            keep = rng.random(coupling.size) < 0.6
            keep[rng.integers(coupling.size)] = True
            params, left[coupling.members] = coupling.masked(params, keep), keep
    return params, left


def check_same(apply, params, *inputs, compare=lambda run: run, rtol=1e-4, atol=1e-5):
    """Shrink and compare with the network as it was; returns what was shrunk."""
    small = shrink(apply, params, *inputs)
    results = [jax.jit(compare(run))(p, *inputs) for run, p in ((small.apply, small.params), (apply, params))]
    jax.tree.map(lambda *both: np.testing.assert_allclose(*both, rtol=rtol, atol=atol), *results)
    return small


def check_lost(small, left):
    """Exactly the channels that are zero are gone, from every leaf that has them."""
    gone = {removal.coupling.members: removal.keep.tolist() for removal in small.removed if removal.channels}
    assert gone == {members: keep.tolist() for members, keep in left.items() if not keep.all()}
    shapes = leaves_by_path(jax.tree.map(lambda x: x, small.params))
    dropped = {}
    for members, keep in left.items():
        for m in members:
            dropped.setdefault((m.path, m.axis), set()).update(m.positions()[~keep].ravel())
    return {path: x.shape for path, x in shapes.items()}, dropped


def widths(small):
    return {path: x.shape for path, x in leaves_by_path(small.params).items()}


def slow(names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


# One of every kind of operation that counts channels.
FEW = (
    *("flatten, channels last", "depthwise, two filters a channel", "grouped", "attention, one matrix for all", "gate"),
    *("concatenation", "padded shortcut", "scan over time", "while", "calls and branches", "groups normalised"),
)


@pytest.mark.parametrize("network", [*FEW, *slow(name for name in NETWORKS if name not in FEW)])
def test_channels_that_are_zero_everywhere_are_gone_and_the_outputs_stay(network):
    apply, params, x, _ = NETWORKS[network]
    zeroed, left = masked(apply, params, x)
    small = check_same(apply, zeroed, x)
    shapes, dropped = check_lost(small, left)
    for (path, axis), positions in dropped.items():
        assert shapes[path][axis] == params[path].shape[axis] - len(positions)


def image(size):
    return jnp.asarray(np.random.default_rng(1).normal(size=(1, size, size, 3)), "f4")


SENTENCE = jnp.array([[1, 4, 2, 0]])
SOUND = jnp.asarray(np.random.default_rng(2).normal(size=(2, 5, 6)), "f4")

PUBLISHED = {
    "ResNet-18": (ResNet18(), image(32)),
    "MobileNetV2": (MobileNetV2(0.35, last=64), image(32)),
    "GRU": (Recurrent(width=7, classes=3), SOUND),
    "transformer": (Bert(layers=2, width=8, heads=4, vocabulary=6), SENTENCE),
}


@pytest.mark.parametrize("name", ["GRU", *slow(["ResNet-18", "MobileNetV2", "transformer"])])
def test_published_networks_lose_channels_and_stay_the_same(name):
    network, x = PUBLISHED[name]
    params, left = masked(network.apply, drawn(network, x), x)
    small = check_same(network.apply, params, x, rtol=1e-3, atol=1e-4)
    check_lost(small, left)
    assert sum(x.size for x in jax.tree.leaves(small.params)) < sum(x.size for x in jax.tree.leaves(params))


def test_a_transformer_loses_heads_by_their_output_weights_and_units_but_no_width():
    network = Bert(layers=1, width=8, heads=4, vocabulary=6)
    params = drawn(network, SENTENCE)
    layer = params["params"]["EncoderLayer_0"]
    attention = layer["MultiHeadDotProductAttention_0"]
    attention["out"]["kernel"] = attention["out"]["kernel"].at[1].set(0.0)
    layer["Dense_0"]["kernel"] = layer["Dense_0"]["kernel"].at[jnp.array([0, 5, 6])].set(0.0)
    small = check_same(network.apply, params, SENTENCE)
    shapes = {path.removeprefix("params/EncoderLayer_0/"): shape for path, shape in widths(small).items()}
    heads = "MultiHeadDotProductAttention_0"
    assert [shapes[f"{heads}/{name}/kernel"] for name in ("query", "key", "value", "out")] == [
        (8, 3, 2),
        (8, 3, 2),
        (8, 3, 2),
        (3, 2, 8),
    ]
    assert (shapes["Dense_1/kernel"], shapes["Dense_1/bias"], shapes["Dense_0/kernel"]) == ((8, 29), (29,), (29, 8))
    assert widths(small)["params/words/embedding"] == (6, 8)


WIDE = arrays(w1=(5, 4), b1=(4,), w2=(4, 3), b2=(3,), w3=(3, 2), b3=(2,))


def test_neurons_go_that_nothing_reads_whatever_they_hold():
    small = check_same(perceptron, WIDE | {"w2": WIDE["w2"].at[2].set(0.0)}, X)
    assert widths(small) == {"b1": (3,), "b2": (3,), "b3": (2,), "w1": (5, 3), "w2": (3, 3), "w3": (3, 2)}


def test_neurons_go_that_are_zero_whatever_reads_them():
    dead = WIDE | {"w1": WIDE["w1"].at[:, 1].set(0.0), "b1": WIDE["b1"].at[1].set(0.0)}
    assert widths(check_same(perceptron, dead, X))["w2"] == (3, 3)


@pytest.mark.parametrize(
    "activation", [jnp.cos, jax.nn.sigmoid, lambda x: x + 1, jnp.exp, lambda x: jnp.where(x > 0, x, 0.1)]
)
def test_neurons_stay_that_an_activation_wakes(activation):
    dead = arrays(w1=(5, 4), w2=(4, 2))
    dead["w1"] = dead["w1"].at[:, 1].set(0.0)
    small = check_same(lambda p, x: activation(x @ p["w1"]) @ p["w2"], dead, X)
    assert widths(small) == {"w1": (5, 4), "w2": (4, 2)}


def test_neurons_with_a_bias_stay():
    small = check_same(perceptron, WIDE | {"w1": WIDE["w1"].at[:, 1].set(0.0)}, X)
    assert small.params["w1"].shape == (5, 4)


def test_neurons_go_that_feed_only_neurons_that_go():
    """The second neuron of the first layer is read by the last of the second alone, which nothing reads."""
    w2 = WIDE["w2"].at[1, :2].set(0.0)
    small = check_same(perceptron, WIDE | {"w2": w2, "w3": WIDE["w3"].at[2].set(0.0)}, X)
    assert widths(small) == {"b1": (3,), "b2": (2,), "b3": (2,), "w1": (5, 3), "w2": (3, 2), "w3": (2, 2)}


def test_a_unit_of_a_loop_that_only_reads_itself_goes():
    def apply(p, x):
        h, _ = lax.scan(lambda h, x: (jnp.tanh(x @ p["wx"] + h @ p["wh"]), None), jnp.zeros((2, p["wh"].shape[0])), x)
        return h @ p["wo"]

    p = arrays(wx=(4, 3), wh=(3, 3), wo=(3, 2))
    p |= {"wh": p["wh"].at[1, jnp.array([0, 2])].set(0.0), "wo": p["wo"].at[1].set(0.0)}
    x = arrays(x=(5, 2, 4))["x"]
    assert widths(check_same(apply, p, x)) == {"wx": (4, 2), "wh": (2, 2), "wo": (2, 2)}


def test_a_unit_of_a_loop_goes_that_stays_zero():
    def apply(p, x):
        return lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ p["wh"]) + x @ p["wx"], x @ p["w0"]) @ p["wo"]

    p = arrays(w0=(5, 3), wx=(5, 3), wh=(3, 3), wo=(3, 2))
    zero = {name: p[name].at[:, 2].set(0.0) for name in ("w0", "wx", "wh")}
    assert widths(check_same(apply, p | zero, X))["wh"] == (2, 2)
    awake = p | zero | {"wh": p["wh"]}  # zero at first, not later
    assert widths(check_same(apply, awake, X))["wh"] == (3, 3)


def test_a_carry_that_a_step_sets_to_zeros_comes_in_the_smaller_size():
    def apply(p, x):
        def step(carry, x):
            sent, _ = carry
            return (jnp.tanh(x @ p["w1"]), jnp.zeros_like(sent)), (sent + carry[1]) @ p["w2"]

        start = jnp.ones((x.shape[1], p["w2"].shape[0]))
        return lax.scan(step, (start, start), x)[1]

    p = arrays(w1=(4, 3), w2=(3, 2))
    x = arrays(x=(5, 2, 4))["x"]
    assert widths(check_same(apply, p | {"w2": p["w2"].at[0].set(0.0)}, x)) == {"w1": (4, 2), "w2": (2, 2)}


def test_layers_of_a_scan_keep_what_any_of_them_needs():
    def apply(p, x):
        x, _ = lax.scan(lambda x, w: (x + relu(x @ w["up"]) @ w["down"], None), x @ p["in"], p["layers"])
        return x @ p["out"]

    p = {"in": arrays(w=(5, 3))["w"], "out": arrays(w=(3, 2))["w"], "layers": arrays(up=(2, 3, 4), down=(2, 4, 3))}
    p["layers"]["down"] = p["layers"]["down"].at[:, 1].set(0.0).at[0, 2].set(0.0)
    assert widths(check_same(apply, p, X))["layers/up"] == (2, 3, 3)


def test_masks_in_the_code_count_as_zeros_of_the_weights():
    mask = np.ones((4, 3), "f4")
    mask[1] = 0

    def apply(p, x):
        return perceptron(p | {"w2": (p["w2"] * mask).astype("bfloat16").astype("f4")}, x)

    small = check_same(apply, WIDE, X)
    assert widths(small)["w1"] == (5, 3)
    assert [m.path for m in small.removed[0].coupling.members] == ["b1", "w1", "w2", "constant 0"]


def test_random_keys_in_the_code_stay_as_they_are():
    keys = jax.random.split(jax.random.key(0), 3)

    def apply(p, x):
        return jax.vmap(lambda key: jax.random.normal(key, (2, 2)))(keys).sum(0) + perceptron(p, x)

    small = check_same(apply, WIDE | {"w2": WIDE["w2"].at[2].set(0.0)}, X)
    assert small.params["w1"].shape == (5, 3)


def test_a_channel_needs_one_gate_that_is_zero():
    def apply(p, x):
        return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]

    p = arrays(gate=(5, 4), up=(5, 4), down=(4, 2))
    p |= {"gate": p["gate"].at[:, 0].set(0.0), "up": p["up"].at[:, 3].set(0.0)}
    assert widths(check_same(apply, p, X)) == {"gate": (5, 2), "up": (5, 2), "down": (2, 2)}


def test_one_channel_is_left_of_what_is_dead_throughout():
    small = check_same(perceptron, WIDE | {"w3": jnp.zeros((3, 2))}, X)
    assert widths(small) == {"b1": (4,), "b2": (1,), "b3": (2,), "w1": (5, 4), "w2": (4, 1), "w3": (1, 2)}


def test_a_channel_that_meets_itself_along_two_axes_is_not_taken_for_zero_along_both():
    def apply(p, x):
        pairs = (x @ p["w"])[:, :, None] * (x @ p["v"] + p["b"][None])[:, None]
        return jnp.einsum("bij,ij->b", pairs, p["m"]) + ((x @ p["w"]) * (x @ p["v"])) @ p["o"]

    p = arrays(w=(5, 3), v=(5, 3), b=(3,), m=(3, 3), o=(3,))
    check_same(apply, p | {"w": p["w"].at[:, 0].set(0.0)}, X)


def test_embeddings_are_not_taken_for_zero_by_the_indices():
    def apply(p, tokens):
        return (jnp.take(p["e"], tokens, axis=0) @ p["w"]).sum((0, 1))

    p = arrays(e=(6, 4), w=(4, 2))
    dead = p | {"e": p["e"].at[:, 3].set(0.0)}
    assert widths(check_same(apply, dead, jnp.zeros((1, 3), int)))["w"] == (3, 2)


@jax.custom_jvp
def straight(x):
    return jnp.round(x)


straight.defjvps(lambda t, y, x: t * jnp.cos(x))


@jax.custom_vjp
def reversed_gradient(x):
    return x * 2


reversed_gradient.defvjp(lambda x: (reversed_gradient(x), x), lambda x, g: (-g * jnp.sin(x),))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint, jax.jit])
@pytest.mark.parametrize("activation", [relu, straight, reversed_gradient])
def test_derivatives_by_inputs_are_those_of_the_network(activation, wrap):
    """Also those that a function was given, which rounding and the slope of relu at zero would show."""

    def apply(p, x):
        return wrap(lambda x: activation(x @ p["w1"]) @ p["w2"])(x)

    p = arrays(w1=(5, 4), w2=(4, 2))
    p["w2"] = p["w2"].at[1].set(0.0)
    x = X.at[0].set(0.0)
    small = check_same(apply, p, x, compare=lambda run: lambda p, x: jax.grad(lambda x: run(p, x).sum())(x))
    assert widths(small)["w1"] == (5, 3)


def test_it_maps_over_inputs():
    batch = arrays(x=(6, *X.shape))["x"]
    dead = WIDE | {"w2": WIDE["w2"].at[2].set(0.0)}
    small = shrink(perceptron, dead, X)
    many = jax.vmap(small.apply, (None, 0))(small.params, batch)
    np.testing.assert_allclose(many, jnp.stack([perceptron(dead, x) for x in batch]), rtol=1e-5, atol=1e-5)


def test_products_run_on_the_smaller_shapes_under_the_names_they_had():
    network = nn.Sequential([nn.Dense(6), relu, nn.Dense(2)])
    params = drawn(network, X)
    params["params"]["layers_2"]["kernel"] = params["params"]["layers_2"]["kernel"].at[:4].set(0.0)
    small = shrink(network.apply, params, X)
    products = [e for e in jax.make_jaxpr(small.apply)(small.params, X).eqns if e.primitive.name == "dot_general"]
    assert [e.invars[1].aval.shape for e in products] == [(5, 2), (2, 2)]
    assert "layers_0" in str(products[0].source_info.name_stack)


def test_where_nothing_is_dead_the_network_is_as_it_was():
    small = shrink(perceptron, MLP, X)
    assert (small.apply, small.params, small.removed) == (perceptron, MLP, ())


def test_zeros_that_cannot_go_are_named_with_the_reason():
    small = shrink(perceptron, WIDE | {"w3": WIDE["w3"].at[:, 0].set(0.0), "b3": WIDE["b3"].at[0].set(0.0)}, X)
    assert "an output has it" in str(small.removed) and "w3.1" in str(small.removed)


def test_an_operation_whose_sizes_are_not_known_keeps_its_channels(monkeypatch):
    def apply(p, x):
        heads = (x @ p["w1"]).reshape(len(x), 2, -1) * 2
        return relu(heads.reshape(len(x), -1) @ p["w2"]) @ p["w3"]

    monkeypatch.delitem(_resize._SIZES, "reshape")
    p = arrays(w1=(5, 6), w2=(6, 4), w3=(4, 2))
    p |= {"w2": p["w2"].at[:3].set(0.0), "w3": p["w3"].at[1].set(0.0)}
    small = check_same(apply, p, X)
    assert widths(small) == {"w1": (5, 6), "w2": (6, 3), "w3": (3, 2)}


def test_other_leaves_and_inputs_are_refused():
    small = shrink(perceptron, WIDE | {"w2": WIDE["w2"].at[2].set(0.0)}, X)
    with pytest.raises(ValueError, match=r"leaf 'b1': found shape \(4,\), expected \(3,\), as the network was shrunk"):
        small.apply(WIDE, X)
    with pytest.raises(ValueError, match=r"input '0': found shape \(1, 5\), expected \(2, 5\)"):
        small.apply(small.params, X[:1])


def zeroed_slices(draw, params):
    """Random slices of random leaves set to zero, whatever they are of."""
    dead = dict(params)
    for path in draw(st.lists(st.sampled_from(sorted(params)), max_size=6)):
        axis = draw(st.integers(0, dead[path].ndim - 1))
        at = draw(st.lists(st.integers(0, dead[path].shape[axis] - 1), min_size=1, max_size=3))
        dead[path] = jnp.moveaxis(jnp.moveaxis(dead[path], axis, 0).at[jnp.array(at)].set(0.0), 0, axis)
    return dead


@pytest.mark.slow
@given(
    names=st.lists(st.sampled_from("dense residual gate grow branches heads turned scaled".split()), max_size=4),
    data=st.data(),
)
def test_networks_of_random_blocks_give_the_same_with_any_slices_zero(names, data):
    names = ("dense", *names)
    params = zeroed_slices(data.draw, arrays(**shapes_of(names, 5)))
    small = shrink(lambda p, x: blocks(p, x, names), params, X)
    with jax.disable_jit():
        np.testing.assert_allclose(small.apply(small.params, X), blocks(params, X, names), rtol=1e-4, atol=1e-4)


def layers(params, x, names):
    """A convolutional network made of layers that take widths from their parameters."""

    def conv(x, w, groups=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups)

    def row(vector):
        return vector[None, None, None]

    for i, name in enumerate(names):
        p = {key.split("_")[1]: leaf for key, leaf in params.items() if key.startswith(f"{i}_")}
        if name == "conv":
            x = relu(conv(x, p["k"]))
        elif name == "norm":
            x = relu((conv(x, p["k"]) - row(p["m"])) * lax.rsqrt(row(p["v"] ** 2 + 0.1)) * row(p["s"]) + row(p["b"]))
        elif name == "depthwise":
            x = jnp.tanh(conv(x, p["k"], x.shape[-1]))
        elif name == "dense":
            x = jnp.concatenate([x, relu(conv(x, p["k"]))], -1)
        elif name == "residual":
            x = x + conv(relu(conv(x, p["k"])), p["l"])
        elif name == "excite":
            x = x * jax.nn.sigmoid(x.mean((1, 2)) @ p["w"])[:, None, None]
        elif name == "pool":
            x = nn.max_pool(x, (2, 2))
        elif name == "attention":
            flat = x.reshape(len(x), -1, x.shape[-1])
            q, k, v = (jnp.einsum("bsd,dhk->bshk", flat, p[part]) for part in "qkv")
            mixed = jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k)), v)
            x = x + jnp.einsum("bqhk,hkd->bqd", mixed, p["o"]).reshape(x.shape)
    return x.mean((1, 2)) @ params["head"]


def shapes_of_layers(names, width):
    shapes = {}
    for i, name in enumerate(names):
        n = width
        made = {
            "conv": {"k": (3, 3, n, 4)},
            "norm": {"k": (1, 1, n, 4), "m": (4,), "v": (4,), "s": (4,), "b": (4,)},
            "depthwise": {"k": (3, 3, 1, 2 * n)},
            "dense": {"k": (1, 1, n, 2)},
            "residual": {"k": (1, 1, n, 3), "l": (1, 1, 3, n)},
            "excite": {"w": (n, n)},
            "pool": {},
            "attention": {"q": (n, 2, 3), "k": (n, 2, 3), "v": (n, 2, 3), "o": (2, 3, n)},
        }[name]
        shapes |= {f"{i}_{key}": shape for key, shape in made.items()}
        width = {"conv": 4, "norm": 4, "depthwise": 2 * n, "dense": n + 2}.get(name, n)
    return shapes | {"head": (width, 2)}


@pytest.mark.slow
@given(
    names=st.lists(
        st.sampled_from("conv norm depthwise dense residual excite pool attention".split()), min_size=1, max_size=3
    ),
    data=st.data(),
)
def test_convolutional_networks_give_the_same_with_any_slices_zero(names, data):
    names = ("conv", *names)
    params = zeroed_slices(data.draw, arrays(**shapes_of_layers(names, 2)))
    small = shrink(lambda p, x: layers(p, x, names), params, IMAGE)
    expected = layers(params, IMAGE, names)
    np.testing.assert_allclose(small.apply(small.params, IMAGE), expected, rtol=1e-3, atol=1e-4 * abs(expected).max())
