"""What couplings finds: removing a channel everywhere it says is exactly setting it to zero, and else it says why."""

import itertools
import math
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from experiments._models import Conv
from jaxcomp._paths import leaves_by_path, replace
from jaxcomp.tracing._couplings import Coupling, couplings
from tests.problems import PYTREES

relu = jax.nn.relu


def arrays(seed=0, **shapes):
    """Random leaves, none of which is near zero."""
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.uniform(0.5, 1.5, s) * rng.choice([-1, 1], s), "f4") for name, s in shapes.items()}


def places(member, channel):
    """By the formula of the docstring, one number at a time."""
    loops = itertools.product(range(member.tile), range(member.repeat))
    return [member.offset + t * member.stride + channel * member.repeat + i for t, i in loops]


def removed_and_zeroed(coupling, channel, params):
    leaves = {path: np.array(x) for path, x in leaves_by_path(params).items()}
    zeroed, gone = {path: x.copy() for path, x in leaves.items()}, {}
    for member in coupling.members:
        np.moveaxis(zeroed[member.path], member.axis, 0)[places(member, channel)] = 0
        gone.setdefault((member.path, member.axis), []).extend(places(member, channel))
    for (path, axis), positions in gone.items():
        leaves[path] = np.delete(leaves[path], positions, axis)
    return replace(params, leaves), replace(params, zeroed)


def check_removable(apply, params, *inputs):
    """Every channel of every prunable coupling; returns the prunable couplings."""
    found = [coupling for coupling in couplings(apply, params, *inputs) if coupling.prunable]
    apply = jax.jit(apply)
    original = apply(params, *inputs)
    for coupling in found:
        changes = []
        for channel in range(coupling.size):
            smaller, zeroed = removed_and_zeroed(coupling, channel, params)
            expected = apply(zeroed, *inputs)
            np.testing.assert_allclose(apply(smaller, *inputs), expected, rtol=2e-4, atol=1e-4)
            changes.append(not np.allclose(expected, original, rtol=1e-3))
        assert any(changes)  # a comparison of channels that do nothing would prove nothing
    return found


def named(found):
    """Members as 'path.axis', with (tile, repeat) where these are not 1 and the offset where it is not 0."""

    def name(m):
        runs = f"[{m.tile},{m.repeat}]" if (m.tile, m.repeat) != (1, 1) else ""
        return f"{m.path}.{m.axis}{runs}{f'+{m.offset}' if m.offset else ''}"

    return {(coupling.size, " ".join(sorted(map(name, coupling.members)))) for coupling in found}


def dense(p, x, name):
    return x @ p[f"w{name}"] + p[f"b{name}"].reshape((1,) * (x.ndim - 1) + (-1,))


def conv(x, w, layout="NHWC", groups=1, padding="SAME"):
    kernel = "HWIO" if layout == "NHWC" else "OIHW"
    numbers = (layout, kernel, layout)
    return lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=numbers, feature_group_count=groups)


def perceptron(p, x):
    return dense(p, jax.nn.sigmoid(dense(p, relu(dense(p, x, 1)), 2)), 3)


MLP = arrays(w1=(5, 4), b1=(4,), w2=(4, 3), b2=(3,), w3=(3, 2), b3=(2,))


def flatten_hwc(p, x):
    x = relu(conv(x, p["k"]) + p["b"].reshape(1, 1, 1, -1))
    return relu(x.reshape(len(x), -1)) @ p["w"]


def flatten_chw(p, x):
    x = relu(conv(x, p["k"], "NCHW") + p["b"].reshape(1, -1, 1, 1))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    return x.reshape(len(x), -1) @ p["w"]


def pooled(p, x):
    return jnp.mean(relu(conv(x, p["k1"], padding="VALID")), (1, 2)) @ p["w"]


def residual(p, x):
    x = relu(x @ p["stem"])
    for block in "12":
        x = x + relu(x @ p["up" + block]) @ p["down" + block]
    return x @ p["head"]


def depthwise(p, x):
    x = relu(conv(x, p["k1"]))
    x = conv(x, p["k2"], groups=x.shape[-1]) + p["b"].reshape(1, 1, 1, -1)
    return jnp.mean(relu(x), (1, 2)) @ p["w"]


def grouped(p, x):
    x = relu(conv(x, p["k1"]))
    x = relu(conv(x, p["k2"], groups=x.shape[-1] // p["k2"].shape[2]))
    return jnp.mean(x, (1, 2)) @ p["w"]


def attention(p, x):
    heads = {name: jnp.einsum("bsd,dhk->bshk", x, p[name]) + p["b" + name][None, None] for name in "qkv"}
    scores = jnp.einsum("bqhk,bshk->bhqs", heads["q"], heads["k"]) / math.sqrt(p["q"].shape[-1])
    mixed = jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(scores), heads["v"])
    return jnp.einsum("bqhk,hkd->bqd", mixed, p["o"])


def fused_attention(p, x, width=3):
    scored = (p["qkv"].shape[1] - p["o"].shape[0]) // 2
    q, k, v = jnp.split(x @ p["qkv"], [scored, 2 * scored], -1)
    q, k, v = (part.reshape(*x.shape[:2], scored // width, -1) for part in (q, k, v))
    mixed = jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k)), v)
    return mixed.reshape(*x.shape[:2], -1) @ p["o"]


def gated(p, x):
    values, gates = jnp.split(x @ p["w1"], 2, -1)
    return (values * jax.nn.sigmoid(gates)) @ p["w2"]


def concatenated(p, x):
    one, two = relu(x @ p["w1"]), jnp.tanh(x @ p["w2"])
    return relu(jnp.concatenate([one, two, one], -1) @ p["w3"]) @ p["w4"]


def concatenated_images(p, x, layout="NHWC"):
    both = [conv(x, p["k1"], layout), relu(conv(x, p["k2"], layout))]
    return jnp.concatenate(both, layout.index("C")).reshape(len(x), -1) @ p["w"]


def padded_shortcut(p, x):
    x = relu(x @ p["w1"])
    wide = jnp.pad(x, ((0, 0), (1, p["w3"].shape[1] - x.shape[1] - 1)))
    return (wide + relu(x @ p["w2"]) @ p["w3"]) @ p["w4"]


def recurrent(p, x):
    def step(h, x):
        h = jnp.tanh(x @ p["wx"] + h @ p["wh"] + p["b"][None])
        return h, h @ p["wo"]

    h, ys = lax.scan(step, jnp.zeros((x.shape[1], p["b"].shape[0])), x)
    return ys.sum(0) + h @ p["wo"]


def repeated_while(p, x):
    x = lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["w"])), (0, x @ p["w1"]))[1]
    return x @ p["w2"]


def stacked_layers(p, x):
    def layer(x, w):
        return x + relu(x @ w["up"]) @ w["down"], None

    x, _ = lax.scan(layer, x @ p["in"], {"up": p["up"], "down": p["down"]})
    return x @ p["out"]


def wrapped(p, x):
    @jax.checkpoint
    def block(w, x):
        return jax.jit(lambda w, x: jax.nn.gelu(x @ w))(w, x)

    return lax.cond(x[0, 0] > 100, lambda x: -x, relu, block(p["w1"], x)) @ p["w2"]


def embedded(p, tokens):
    return jnp.tanh(jnp.take(p["e"], tokens, axis=0) @ p["w"]) @ p["e"].T


def group_normalised(p, x, width=2):
    groups = (x @ p["w1"]).reshape(len(x), -1, width)
    groups = (groups - groups.mean(-1, keepdims=True)) / (groups.std(-1, keepdims=True) + 0.1)
    return (groups.reshape(len(x), -1) * p["scale"][None] + p["bias"][None]) @ p["w2"]


def rounded(p, x):
    def weight(w, mask):
        return jnp.clip(jnp.round(w * mask * 8) / 8, -2, 2)

    return relu(x @ weight(p["w1"], jnp.array([[1.0], [0.0], [1.0]]))) @ weight(p["w2"], 1.0)


def low_rank(p, x):
    return relu(x @ (p["u"] @ p["v"])) @ p["w"]


X, IMAGE, SEQUENCE = arrays(x=(2, 5))["x"], arrays(x=(2, 4, 4, 2))["x"], arrays(x=(2, 3, 4))["x"]
HEADS = arrays(q=(4, 2, 3), k=(4, 2, 3), v=(4, 2, 3), bq=(2, 3), bk=(2, 3), bv=(2, 3), o=(2, 3, 4))

# network: (apply, parameters, input, the couplings that are prunable, each as its channels and members)
NETWORKS = {
    "perceptron": (perceptron, MLP, X, {(4, "b1.0 w1.1 w2.0"), (3, "b2.0 w2.1 w3.0")}),
    "flatten, channels last": (
        flatten_hwc,
        arrays(k=(3, 3, 2, 3), b=(3,), w=(48, 2)),
        IMAGE,
        {(3, "b.0 k.3 w.0[16,1]")},
    ),
    "flatten, channels first": (
        flatten_chw,
        arrays(k=(3, 2, 3, 3), b=(3,), w=(12, 2)),
        IMAGE.transpose(0, 3, 1, 2),
        {(3, "b.0 k.0 w.0[1,4]")},
    ),
    "global pool": (pooled, arrays(k1=(3, 3, 2, 3), w=(3, 2)), IMAGE, {(3, "k1.3 w.0")}),
    "residual": (
        residual,
        arrays(stem=(5, 3), up1=(3, 4), down1=(4, 3), up2=(3, 2), down2=(2, 3), head=(3, 2)),
        X,
        {
            (3, "down1.1 down2.1 head.0 stem.1 up1.0 up2.0"),
            (4, "down1.0 up1.1"),
            (2, "down2.0 up2.1"),
        },
    ),
    "depthwise": (
        depthwise,
        arrays(k1=(3, 3, 2, 4), k2=(3, 3, 1, 4), b=(4,), w=(4, 2)),
        IMAGE,
        {(4, "b.0 k1.3 k2.3 w.0")},
    ),
    "depthwise, two filters a channel": (
        depthwise,
        arrays(k1=(3, 3, 2, 3), k2=(3, 3, 1, 6), b=(6,), w=(6, 2)),
        IMAGE,
        {(3, "b.0[1,2] k1.3 k2.3[1,2] w.0[1,2]"), (2, "b.0[3,1] k2.3[3,1] w.0[3,1]")},
    ),
    "grouped": (
        grouped,
        arrays(k1=(3, 3, 2, 6), k2=(3, 3, 3, 4), w=(4, 2)),
        IMAGE,
        {(2, "k1.3[1,3] k2.3[1,2] w.0[1,2]"), (3, "k1.3[2,1] k2.2"), (2, "k2.3[2,1] w.0[2,1]")},
    ),
    "attention": (
        attention,
        HEADS,
        SEQUENCE,
        {(2, "bk.0 bq.0 bv.0 k.1 o.0 q.1 v.1"), (3, "bv.1 o.1 v.2")},
    ),
    "attention, one matrix for all": (
        fused_attention,
        arrays(qkv=(4, 18), o=(6, 4)),
        SEQUENCE,
        {(2, "o.0[1,3] qkv.1[1,3] qkv.1[1,3]+12 qkv.1[1,3]+6"), (3, "o.0[2,1] qkv.1[2,1]+12")},
    ),
    "gate": (gated, arrays(w1=(5, 6), w2=(3, 2)), X, {(3, "w1.1 w1.1+3 w2.0")}),
    "concatenation": (
        concatenated,
        arrays(w1=(5, 3), w2=(5, 2), w3=(8, 3), w4=(3, 2)),
        X,
        {(3, "w1.1 w3.0 w3.0+5"), (2, "w2.1 w3.0+3"), (3, "w3.1 w4.0")},
    ),
    "flattened concatenation": (
        concatenated_images,
        arrays(k1=(3, 3, 2, 2), k2=(3, 3, 2, 3), w=(80, 2)),
        IMAGE,
        {(2, "k1.3 w.0[16,1]"), (3, "k2.3 w.0[16,1]+2")},
    ),
    "flattened concatenation, channels first": (
        partial(concatenated_images, layout="NCHW"),
        arrays(k1=(2, 2, 3, 3), k2=(3, 2, 3, 3), w=(80, 2)),
        IMAGE.transpose(0, 3, 1, 2),
        {(2, "k1.0 w.0[1,16]"), (3, "k2.0 w.0[1,16]+32")},
    ),
    "padded shortcut": (
        padded_shortcut,
        arrays(w1=(5, 3), w2=(3, 4), w3=(4, 6), w4=(6, 2)),
        X,
        {(4, "w2.1 w3.0"), (3, "w1.1 w2.0 w3.1+1 w4.0+1")},
    ),
    "scan over time": (
        recurrent,
        arrays(wx=(5, 3), wh=(3, 3), b=(3,), wo=(3, 2)),
        arrays(x=(4, 2, 5))["x"],
        {(3, "b.0 wh.0 wh.1 wo.0 wx.1")},
    ),
    "while": (repeated_while, arrays(w=(3, 3), w1=(5, 3), w2=(3, 2)), X, {(3, "w.0 w.1 w1.1 w2.0")}),
    "scan over layers": (
        stacked_layers,
        arrays(up=(2, 3, 4), down=(2, 4, 3), out=(3, 2)) | {"in": arrays(w=(5, 3))["w"]},
        X,
        {(3, "down.2 in.1 out.0 up.1"), (4, "down.1 up.2")},
    ),
    "calls and branches": (wrapped, arrays(w1=(5, 3), w2=(3, 2)), X, {(3, "w1.1 w2.0")}),
    "tied embedding": (embedded, arrays(e=(6, 3), w=(3, 3)), jnp.array([[0, 3], [5, 1]]), {(3, "e.1 w.0 w.1")}),
    "groups normalised": (
        group_normalised,
        arrays(w1=(5, 6), scale=(6,), bias=(6,), w2=(6, 2)),
        X,
        {(3, "bias.0[1,2] scale.0[1,2] w1.1[1,2] w2.0[1,2]")},
    ),
    "masked and rounded weights": (rounded, arrays(w1=(3, 4), w2=(4, 2)), X[:, :3], {(4, "w1.1 w2.0")}),
    "product of weights": (
        low_rank,
        arrays(u=(5, 2), v=(2, 3), w=(3, 2)),
        X,
        {(2, "u.1 v.0"), (3, "v.1 w.0")},
    ),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_removing_a_channel_is_setting_it_to_zero(network):
    apply, params, x, expected = NETWORKS[network]
    assert named(check_removable(apply, params, x)) == expected


@pytest.mark.parametrize("network", NETWORKS)
def test_every_member_is_needed(network):
    """With one member left as it was, the smaller network does not run or gives something else."""
    apply, params, x, _ = NETWORKS[network]
    for coupling in filter(lambda coupling: coupling.prunable, couplings(apply, params, x)):
        expected = apply(removed_and_zeroed(coupling, 0, params)[1], x)
        for member in coupling.members:
            others = tuple(m for m in coupling.members if m != member)
            smaller, _ = removed_and_zeroed(Coupling(others), 0, params)
            try:
                found = apply(smaller, x)
            except (TypeError, ValueError, ZeroDivisionError):
                continue
            assert not np.allclose(found, expected, rtol=1e-3)


class ConvNet(nn.Module):
    """Convolutions with batch normalization; its widths are those of its parameters."""

    widths: tuple[int, int]
    form: str

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate(self.widths):
            x = Conv(width, (3, 3), form=self.form, name=f"conv{i}")(x)
            x = nn.BatchNorm(use_running_average=True, name=f"norm{i}")(x)
            x = nn.max_pool(relu(x), (2, 2), (2, 2))
        return nn.Dense(2, name="fc")(x.reshape(len(x), -1))


def conv_net(form):
    def apply(variables, x):
        widths = tuple(variables["params"][f"conv{i}"]["bias"].shape[0] for i in range(2))
        return ConvNet(widths, form).apply(variables, x)

    variables = ConvNet((3, 4), form).init(jax.random.key(0), IMAGE)
    shapes = {path: x.shape for path, x in leaves_by_path(variables).items()}
    params = replace(variables, {path: jnp.abs(x) if "var" in path else x for path, x in arrays(**shapes).items()})
    return apply, params


@pytest.mark.parametrize("form", ["convolution", "matmul"])
@pytest.mark.slow
def test_batch_normalization_goes_with_its_layer(form):
    """Also where the convolution is written as slices, concatenations and one matrix product."""

    def layer(i, then):
        stats, norm = f"batch_stats/norm{i}/mean.0 batch_stats/norm{i}/var.0", f"params/norm{i}"
        conv = f"params/conv{i}/bias.0 params/conv{i}/kernel.3"
        return " ".join(sorted(f"{stats} {conv} {norm}/bias.0 {norm}/scale.0 {then}".split()))

    expected = {(3, layer(0, "params/conv1/kernel.2")), (4, layer(1, "params/fc/kernel.0"))}
    assert named(check_removable(*conv_net(form), IMAGE)) == expected


def test_a_flax_attention_block_loses_heads_and_the_width_of_its_values():
    block = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6)
    params = block.init(jax.random.key(0), SEQUENCE)["params"]
    found = couplings(lambda p, x: block.apply({"params": p}, x), params, SEQUENCE)
    inside = "key/bias.0 key/kernel.1 out/kernel.0 query/bias.0 query/kernel.1 value/bias.0 value/kernel.1"
    values = "out/kernel.1 value/bias.1 value/kernel.2"
    assert named(c for c in found if c.prunable) == {(2, inside), (3, values)}
    (keys,) = [c for c in found if "key/kernel.2" in str(named([c]))]
    assert "multiplies activations over it" in keys.reason


def normalised(x):
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


TABLE = np.random.default_rng(0).normal(size=(4, 4)).astype("f4")

# what stands between two layers: (what it does, why the channels between them cannot be pruned)
BETWEEN = {
    "layer normalization": (normalised, "reduce_sum runs over it"),
    "root mean square": (lambda x: x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True)), "reduce_sum runs over it"),
    "softmax": (jax.nn.softmax, "reduce_max runs over it"),
    "largest": (lambda x: x * (x >= x.max(-1, keepdims=True)), "reduce_max runs over it"),
    "sort": (lambda x: jnp.sort(x), "sort runs along it"),
    "cumulative sum": (lambda x: jnp.cumsum(x, -1), "cumsum runs along it"),
    "reversal": (lambda x: x[:, ::-1], "rev runs along it"),
    "every other": (lambda x: jnp.repeat(x[:, ::2], 2, -1), "a slice takes some of it|gather looks it up"),
    "lookup": (lambda x: x[:, np.array([1, 0, 3, 2])], "gather looks it up"),
    "dynamic slice": (
        lambda x: jnp.tile(lax.dynamic_slice_in_dim(x, x.argmax(), 2, 1), (1, 2)),
        "argmax runs over it|dynamic_slice takes some",
    ),
    "transform": (lambda x: jnp.fft.fft(x).real, "fft is not understood"),
    "scatter": (lambda x: x.at[:, np.array([1, 2])].set(0.0), "scatter is not understood"),
    "dropout": (lambda x: x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape), "not understood"),
    "products of examples": (lambda x: (x @ x.T) @ x, "multiplies activations over it"),
    "correlation of channels": (lambda x: x @ (x.T @ x), "multiplies activations over it"),
    "constant matrix": (lambda x: x @ TABLE, "a constant of the program has it"),
    "constant row": (lambda x: x + TABLE[:1], "a constant of the program has it"),
    "neighbours": (lambda x: jnp.pad(x[:, 1:] * x[:, :-1], ((0, 0), (0, 1))), "ways that do not fit together"),
    "numbering": (lambda x: x + jnp.arange(4.0)[None], "iota numbers it"),
    "convolution along it": (lambda x: jax.vmap(lambda r: jnp.convolve(r, TABLE[0], "same"))(x), "slides along it"),
    "window along it": (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2), (1, 1), "SAME"), "slides along it"),
    "shuffle that does not fit": (lambda x: jnp.pad(x, ((0, 0), (0, 2))).reshape(3, 4)[:2], "not understood"),
}


@pytest.mark.parametrize("between", BETWEEN)
def test_what_is_not_exact_or_not_understood_is_said(between):
    operation, reason = BETWEEN[between]
    params = arrays(w1=(5, 4), w2=(4, 2))
    found = couplings(lambda p, x: operation(x @ p["w1"]) @ p["w2"], params, X)
    hidden = [c for c in found for m in c.members if (m.path, m.axis) == ("w1", 1)]
    assert hidden and not any(c.prunable for c in hidden)
    assert all(re.search(reason, c.reason) for c in hidden)


@pytest.mark.parametrize(
    "weight",
    [jnp.exp, jnp.cos, lambda w: w + 1, lambda w: jnp.where(w > 0, w, 1.0), lambda w: jnp.maximum(w, 0.1)],
)
def test_weights_that_zero_does_not_silence_cannot_be_pruned(weight):
    """Setting their leaves to zero would leave the channel in place."""
    params = arrays(w1=(5, 4), w2=(4, 2))
    found = couplings(lambda p, x: jnp.cos(x @ p["w1"]) @ weight(p["w2"]), params, X)
    assert not any(c.prunable for c in found)
    assert any("weights that are not zero where their leaves are" in c.reason for c in found)


def test_inputs_and_outputs_are_not_prunable():
    found = {m: c.reason for c in couplings(perceptron, MLP, X) for m in named([Coupling(c.members)])}
    assert found[5, "w1.0"] == "an input has it"
    assert found[2, "b3.0 w3.1"] == "an output has it"


def test_state_that_the_program_does_not_read_is_not_prunable():
    params = MLP | arrays(mean=(4,))
    for apply in (perceptron, jax.jit(perceptron)):
        (unread,) = [c for c in couplings(apply, params, X) if c.members[0].path == "mean"]
        assert unread.reason == "the program does not read it"


def test_zeros_that_two_layers_share_do_not_couple_them():
    def apply(p, x):
        zeros = jnp.zeros((1, p["w1"].shape[1]))
        return jnp.maximum(x @ p["w1"], zeros) @ p["w2"] + jnp.maximum(x @ p["w3"], zeros) @ p["w4"]

    params = arrays(w1=(5, 3), w2=(3, 2), w3=(5, 3), w4=(3, 2))
    found = couplings(apply, params, X)
    assert named(c for c in found if c.prunable) == {(3, "w1.1 w2.0"), (3, "w3.1 w4.0")}


def test_one_axis_cut_in_two_ways_that_do_not_fit_is_not_prunable():
    def apply(p, x):
        hidden = x @ p["w1"]
        rows = hidden.reshape(2, 4, 3) @ p["three"]
        return rows.sum((1, 2)) + (hidden.reshape(2, 3, 4) @ p["four"]).sum((1, 2))

    found = couplings(apply, arrays(w1=(5, 12), three=(3, 2), four=(4, 2)), X)
    assert not any(c.prunable for c in found for m in c.members if (m.path, m.axis) == ("w1", 1))


def test_an_axis_that_holds_products_of_channels_with_themselves_is_not_prunable():
    def apply(p, x):
        hidden = x @ p["w1"]
        return (hidden[:, :, None] * hidden[:, None]).reshape(len(x), -1) @ p["w2"]

    (hidden,) = [c for c in couplings(apply, arrays(w1=(5, 3), w2=(9, 2)), X) if c.size == 3]
    assert hidden.reason == "it meets itself along one axis"


def test_deep_networks_are_walked_through():
    def apply(p, x):
        x = x @ p["in"]
        for _ in range(400):
            x = jnp.tanh(x @ p["w"]) + x
        return x @ p["out"]

    params = arrays(w=(4, 4), out=(4, 2)) | {"in": jnp.ones((5, 4))}
    (hidden,) = [c for c in couplings(apply, params, X) if c.prunable]
    assert named([hidden]) == {(4, "in.1 out.0 w.0 w.1")}


def test_every_long_axis_of_every_leaf_is_accounted_for():
    for apply, params, x, _ in NETWORKS.values():
        places = {(m.path, m.axis) for c in couplings(apply, params, x) for m in c.members}
        assert places == {(path, i) for path, leaf in params.items() for i, n in enumerate(leaf.shape) if n > 1}


def nnx_and_equinox():
    def run(model, x):
        x = model.activation(model.conv(x))
        return model.fc(x.reshape(*x.shape[:-3], -1))

    nnx_net, eqx_net = (PYTREES[kind][0]() for kind in ("nnx module", "equinox"))
    yield run, nnx_net, jnp.zeros((1, 1, 2, 1)), {(2, "conv/bias.0 conv/kernel.3 fc/kernel.0[2,1]")}

    def batched(model, x):
        return jax.vmap(lambda x: run(model, x))(x)

    yield batched, eqx_net, jnp.zeros((3, 1, 3, 4)), {(2, "conv/bias.0 conv/weight.0 fc/weight.1[1,2]")}


@pytest.mark.parametrize(("apply", "tree", "x", "expected"), list(nnx_and_equinox()), ids=["nnx", "equinox"])
def test_couplings_of_modules_have_the_paths_of_assign(apply, tree, x, expected):
    found = couplings(apply, tree, x)
    assert named(c for c in found if c.prunable) == expected
    assert {m.path for c in found for m in c.members} <= set(leaves_by_path(tree))


def test_shapes_are_enough_and_what_is_no_array_is_handed_through():
    def apply(p, x, training):
        assert training is False
        return perceptron(p, x["x"])

    params, x = jax.eval_shape(lambda: (MLP, {"x": X}))
    assert couplings(apply, params, x, False) == couplings(perceptron, MLP, X)


def test_masked_and_pruned_agree_with_removing_by_hand():
    apply, params, x, _ = NETWORKS["attention, one matrix for all"]
    for coupling in couplings(apply, params, x):
        for channel in range(coupling.size if coupling.prunable else 0):
            smaller, zeroed = removed_and_zeroed(coupling, channel, params)
            keep = np.arange(coupling.size) != channel
            jax.tree.map(np.testing.assert_array_equal, coupling.pruned(params, keep), smaller)
            jax.tree.map(np.testing.assert_array_equal, coupling.masked(params, keep), zeroed)
    with pytest.raises(ValueError, match=r"keep has shape \(9,\), expected a boolean for each of"):
        coupling.pruned(params, np.ones(9, bool))


@pytest.mark.parametrize("network", NETWORKS)
def test_views_have_the_channels_as_groups(network):
    apply, params, x, _ = NETWORKS[network]
    for coupling in couplings(apply, params, x):
        for member in coupling.members:
            leaf = np.asarray(params[member.path])
            along = np.moveaxis(leaf, member.axis, 0)
            np.testing.assert_array_equal(member.positions(), [places(member, c) for c in range(member.size)])
            whole = member.size * member.tile * member.repeat == len(along)
            if not whole or min(member.tile, member.repeat) > 1:
                with pytest.raises(ValueError, match=f"leaf '{member.path}'"):
                    member.view(leaf.shape)
                continue
            groups = member.view(leaf.shape).split(leaf)
            assert groups.shape[:2] == (1, member.size)
            for channel, group in enumerate(groups[0]):
                np.testing.assert_array_equal(np.sort(group), np.sort(along[places(member, channel)].ravel()))
            np.testing.assert_array_equal(member.view(leaf.shape).merge(groups, leaf.shape), leaf)


def test_a_coupling_gives_a_view_a_leaf_unless_a_leaf_holds_it_twice():
    apply, params, x, _ = NETWORKS["flatten, channels last"]
    (coupling,) = [c for c in couplings(apply, params, x) if c.prunable]
    views = coupling.views(params)
    assert {path: view.sizes(params[path].shape).groups for path, view in views.items()} == {"b": 3, "k": 3, "w": 3}
    apply, params, x, _ = NETWORKS["scan over time"]
    (coupling,) = [c for c in couplings(apply, params, x) if c.prunable]
    with pytest.raises(ValueError, match="several members lie in one leaf"):
        coupling.views(params)


def test_couplings_print_what_goes_together_and_why_it_cannot_go():
    text = str(couplings(perceptron, MLP, X))
    lines = [line.strip("│").split("│") for line in text.splitlines() if line.startswith("│")]
    rows = [[cell.strip() for cell in line] for line in lines]
    assert ["0", "4", "yes", "b1", "0", "1", "1", "0"] in rows
    assert ["", "", "", "w1", "1", "1", "1", "0"] in rows
    assert any(row[2] == "no: an input has it" and row[3] == "w1" for row in rows)


def blocks(params, x, names):
    """A network made of blocks that take widths, and places to cut, from their parameters."""
    for i, name in enumerate(names):
        p = {key.split("_")[1]: leaf for key, leaf in params.items() if key.startswith(f"{i}_")}
        if name == "dense":
            x = jnp.tanh(x @ p["w"] + p["b"][None])
        elif name == "residual":
            x = x + jnp.tanh(x @ p["u"] + p["b"][None]) @ p["d"]
        elif name == "gate":
            one, two = jnp.split(x @ p["w"], 2, -1)
            x = one * jax.nn.sigmoid(two)
        elif name == "grow":
            x = jnp.concatenate([x, x @ p["w"], x], -1)
        elif name == "branches":
            one, two = jnp.split(jnp.sin(x @ p["w"]), [p["u"].shape[0]], -1)
            x = one @ p["u"] + two @ p["v"]
        elif name == "heads":
            x = jnp.einsum("bhi,hij->bhj", x.reshape(len(x), p["m"].shape[0], -1), p["m"]).reshape(len(x), -1)
        elif name == "turned":
            x = x.reshape(len(x), p["s"].shape[0], -1) * p["s"][None, :, None]
            x = x.transpose(0, 2, 1).reshape(len(x), -1)
        elif name == "scaled":
            x = x * p["g"][None] + p["b"][None]
    return x @ params["head"]


def shapes_of(names, width):
    """Parameters of such a network, and its width in the end."""
    shapes = {}
    for i, name in enumerate(names):
        n = width
        made = {
            "dense": {"w": (n, 4), "b": (4,)},
            "residual": {"u": (n, 3), "b": (3,), "d": (3, n)},
            "gate": {"w": (n, 8)},
            "grow": {"w": (n, 2)},
            "branches": {"w": (n, 5), "u": (2, 4), "v": (3, 4)},
            "heads": {"m": (2, n // 2, 3)},
            "turned": {"s": (2,)},
            "scaled": {"g": (n,), "b": (n,)},
        }[name]
        shapes |= {f"{i}_{key}": shape for key, shape in made.items()}
        width = {"dense": 4, "gate": 4, "grow": 2 * n + 2, "branches": 4, "heads": 6}.get(name, n)
    return shapes | {"head": (width, 2)}


@pytest.mark.slow
@given(names=st.lists(st.sampled_from("dense residual gate grow branches heads turned scaled".split()), max_size=4))
def test_networks_of_random_blocks_lose_channels_exactly(names):
    names = ("dense", *names)
    params = arrays(**shapes_of(names, 5))
    check_removable(lambda p, x: blocks(p, x, names), params, X)
