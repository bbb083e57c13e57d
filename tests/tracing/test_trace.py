"""What trace finds: published counts, the leaf behind every product, and what is in memory when."""

import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from jaxcomp._paths import leaves_by_path
from jaxcomp._workload import Product, Tensor, Workload
from jaxcomp.tracing._couplings import couplings
from jaxcomp.tracing._trace import trace
from tests import networks
from tests.networks import image
from tests.problems import PYTREES
from tests.tracing.test_couplings import NETWORKS

AMC = (24, 48, 96, 80, 192, 200, 328, 352, 368, 360, 328, 400, 736, 752)
STEPS, FEATURES, WIDTH, CLASSES = 20, 39, 64, 10
SEQUENCE = jax.ShapeDtypeStruct((1, STEPS, FEATURES), jnp.float32)

# network: (its module, what goes in, multiplications)
COUNTED = {
    "ResNet-18": (networks.ResNet18(), image(224), 1_814_073_344),
    "MobileNetV1": (networks.MobileNetV1(), image(224), 568_740_352),
    "MobileNetV1 with the channels that AMC chose": (networks.MobileNetV1(AMC), image(224), 293_870_000),
    "MobileNetV1, three quarters wide": (
        networks.MobileNetV1([c * 3 // 4 for c in networks.MobileNetV1.channels]),
        image(224),
        325_400_448,
    ),
    "MobileNetV2": (networks.MobileNetV2(), image(224), 300_774_272),
    "MobileNetV2 for a microcontroller": (networks.MobileNetV2(0.35, 448), image(144), 23_499_152),
    "GRU": (
        networks.Recurrent(WIDTH, CLASSES),
        SEQUENCE,
        STEPS * (3 * WIDTH * (FEATURES + WIDTH) + WIDTH * CLASSES),
    ),
    "BERT-base": (networks.Bert(), networks.tokens(128), 12 * (12 * 768**2 * 128 + 2 * 768 * 128**2)),
}


@functools.cache
def traced(network):
    module, x, _ = COUNTED[network]
    return trace(module.apply, networks.variables(module, x), x)


@pytest.mark.parametrize("network", COUNTED)
def test_multiplications_of_known_networks(network):
    module, x, expected = COUNTED[network]
    workload = traced(network)
    assert workload.macs == expected
    kernels = {path for path, leaf in leaves_by_path(networks.variables(module, x)).items() if path.endswith("kernel")}
    assert {product.path for product in workload if product.weighted} == kernels
    assert not workload.unattributed and not workload.notes
    assert len({product.name for product in workload}) == len(workload)


def test_published_ratios_of_a_channel_policy():
    """AMC's channels for MobileNetV1 leave 293.9 of 568.7 M multiplications, three quarters of its width 325.4 M."""
    names = ("", ", three quarters wide", " with the channels that AMC chose")
    full, narrow, chosen = (traced("MobileNetV1" + name).macs / 1e6 for name in names)
    assert (round(full, 1), round(narrow, 1), round(chosen, 1)) == (568.7, 325.4, 293.9)


def test_the_published_peak_of_a_microcontroller_network():
    """MCUNet's counter gives 311 040 bytes for MobileNetV2 of factor 0.35 at 144 pixels, at one byte a number."""
    assert max(traced("MobileNetV2 for a microcontroller").live) == 311_040


def test_a_residual_waits_for_its_addition():
    """Input and output of every convolution, and what goes around them: MCUNet's rule in its strict form."""
    block, x = networks.InvertedResidual(8, 1, 6), jax.ShapeDtypeStruct((1, 5, 7, 8), jnp.float32)
    workload = trace(block.apply, networks.variables(block, x), x)
    narrow, wide = 5 * 7 * 8, 5 * 7 * 48
    assert workload.live == [narrow + wide, wide + wide + narrow, wide + narrow + narrow]
    around, expanded, *_ = workload.tensors
    assert (around.born, around.dies, around.read) == (-1, 2.5, 0)
    assert (expanded.born, expanded.dies, expanded.read) == (0, 1, 1)


def arrays(seed=0, **shapes):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("network", NETWORKS)
def test_trace_and_couplings_agree_on_paths(network):
    apply, params, x, _ = NETWORKS[network]
    workload = trace(apply, params, x)
    coupled = {member.path for coupling in couplings(apply, params, x) for member in coupling.members}
    assert {product.path for product in workload if product.path} <= coupled
    assert dict(workload.leaves) == {path: leaf.size for path, leaf in params.items()}


@jax.custom_vjp
def straight_through(w):
    return jnp.clip(jnp.round(w * 8), -8, 7) / 8


straight_through.defvjp(lambda w: (straight_through(w), None), lambda _, g: (g,))


def weight_norm(p, x):
    v = p["w"]
    return x @ (v * (p["g"] / jnp.linalg.norm(v, axis=0))[None])


def fused(p, x):
    q, k, v = jnp.split(p["qkv"], 3, axis=1)
    return (x @ q) * (x @ k) + x @ v


def looped(p, x):
    return lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ lax.dynamic_index_in_dim(p["w"], i, keepdims=False)), x)


def nested(p, x):
    def outer(x, w):
        return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=5)[0], None

    return lax.scan(outer, x, p["w"])[0]


def circulant(p, x):
    n = len(p["c"])
    return x @ p["c"][(jnp.arange(n)[:, None] - jnp.arange(n)[None]) % n]


def branched(p, x):
    return lax.cond(x[0, 0] > 0, lambda x: x @ p["w"], lambda x: jnp.tanh(x) @ p["v"], x)


W, X = arrays(w=(6, 6)), arrays(x=(4, 6))["x"]
MASK = np.random.default_rng(1).random((6, 6)) < 0.5

# what is done to a leaf on its way: (the model, parameters, the paths, repeats and copies of its products)
WAYS = {
    "transposed and reshaped": (lambda p, x: x @ p["w"].T.reshape(6, 2, 3).reshape(6, 6), W, [("w", 1, 1)]),
    "cast": (lambda p, x: x @ p["w"].astype(jnp.bfloat16).astype(jnp.float32), W, [("w", 1, 1)]),
    "masked": (lambda p, x: x @ jnp.where(MASK, p["w"], 0) @ (p["w"] * MASK), W, [("w", 1, 1), ("w", 1, 0)]),
    "masked by a leaf": (lambda p, x: x @ jnp.where(p["m"] > 0, p["w"], 0), W | {"m": jnp.ones((6, 6))}, [("w", 1, 1)]),
    "rounded": (lambda p, x: x @ (p["w"] + lax.stop_gradient(jnp.round(p["w"]) - p["w"])), W, [("w", 1, 1)]),
    "rounded, with a gradient of its own": (lambda p, x: x @ straight_through(p["w"]), W, [("w", 1, 1)]),
    "scaled by an input": (lambda p, x: x @ (p["w"] * x.max()), W, [("w", 1, 1)]),
    "normalised": (weight_norm, W | {"g": jnp.ones(6)}, [("w", 1, 1)]),
    "with noise": (lambda p, x: x @ (p["w"] + jax.random.normal(jax.random.key(0), (6, 6))), W, [("w", 1, 1)]),
    "with an adapter": (lambda p, x: x @ (p["w"] + p["a"] @ p["b"]), W | arrays(a=(6, 2), b=(2, 6)), ["b", "w"]),
    "as slices of one matrix": (fused, arrays(qkv=(6, 18)), [("qkv", 1, 1)] * 3),
    "in a stack": (lambda p, x: lax.scan(lambda x, w: (x @ w, None), x, p["w"])[0], arrays(w=(3, 6, 6)), [("w", 3, 3)]),
    "in a stack, by number": (looped, arrays(w=(3, 6, 6)), [("w", 3, 3)]),
    "in nested loops": (nested, arrays(w=(3, 6, 6)), [("w", 15, 3)]),
    "spread over a batch": (
        lambda p, x: jnp.einsum("bi,bij->bj", x, jnp.broadcast_to(p["w"], (4, 6, 6))),
        W,
        [("w", 1, 1)],
    ),
    "gathered into a circulant": (circulant, arrays(c=(6,)), [("c", 1, 1 / 6)]),
    "in calls": (lambda p, x: jax.jit(jax.checkpoint(lambda w, x: x @ w))(p["w"], x), W, [("w", 1, 1)]),
    "over examples": (lambda p, x: jax.vmap(lambda x: p["w"] @ x)(x), W, [("w", 1, 1)]),
    "in an ensemble": (
        lambda p, x: jax.vmap(jnp.dot)(jnp.stack([x, -x, x]), p["w"]),
        arrays(w=(3, 6, 6)),
        [("w", 1, 1)],
    ),
    "in a while loop": (
        lambda p, x: lax.while_loop(lambda x: jnp.sum(x) > 1, lambda x: jnp.tanh(x @ p["w"]), x),
        W,
        [("w", 1, 1)],
    ),
    "in branches": (branched, arrays(w=(6, 6), v=(6, 6)), [("v", 1, 1), ("w", 1, 1)]),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_leaf_of_a_product_is_found(way):
    apply, params, expected = WAYS[way]
    workload = trace(apply, params, X)
    found = [(p.path, p.repeat, p.copies) for p in workload]
    assert ([path for path, *_ in found] if isinstance(expected[0], str) else found) == expected
    assert not workload.unattributed


def test_an_ensemble_has_a_group_a_member_and_a_batch_does_not():
    (ensemble,) = trace(*WAYS["in an ensemble"][:2], X)
    assert (ensemble.groups, ensemble.batch, ensemble.depth, ensemble.columns) == (3, 4, 6, 6)
    for way in ("spread over a batch", "over examples"):
        (product,) = trace(*WAYS[way][:2], X)
        assert (product.groups, product.batch, product.weights) == (1, 4, 36)


def test_a_stack_is_stored_whole_and_tied_weights_once():
    def apply(p, tokens):
        x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), p["table"][tokens], p["layers"])
        return x @ p["table"].T

    params = arrays(table=(11, 6), layers=(3, 6, 6))
    workload = trace(apply, params, jnp.arange(5))
    assert [(product.path, product.weights * product.copies) for product in workload] == [
        ("layers", params["layers"].size),
        ("table", params["table"].size),
    ]
    assert [(x.path, x.rows, x.width) for x in workload.lookups] == [("table", 5, 6)]


# models with a product whose weights are of no one leaf: (model, parameters, what is said of it)
MIXED = {
    "laid end to end": (lambda p, x: x @ jnp.concatenate([p["q"], p["k"]]), arrays(q=(2, 3), k=(4, 3)), "of q, k"),
    "added up": (lambda p, x: x @ (p["q"] + p["k"]), arrays(q=(6, 3), k=(6, 3)), "of q, k"),
    "multiplied": (lambda p, x: x @ (p["q"] @ p["k"]), arrays(q=(6, 3), k=(3, 6)), "of q, k"),
    "a constant": (lambda p, x: jnp.tanh(x + p["b"][None]) @ MASK.astype("f4"), arrays(b=(6,)), "constant of the"),
}


@pytest.mark.parametrize("case", MIXED)
def test_weights_of_no_one_leaf_are_listed_with_the_reason(case):
    apply, params, reason = MIXED[case]
    workload = trace(apply, params, X)
    (line,) = workload.unattributed
    assert reason in line and reason in str(workload)
    assert (workload.products[-1].path, workload.products[-1].weighted, workload.products[-1].copies) == (None, 1, 1)


def test_leaves_side_by_side_make_a_product_each():
    """As the gates of flax's cell are; what comes of them is in memory once."""

    def apply(p, x):
        return jnp.tanh(x @ jnp.concatenate([p["q"], p["k"]], 1)) @ p["o"]

    workload = trace(apply, arrays(q=(6, 2), k=(6, 3), o=(5, 2)), X)
    assert [(p.path, p.macs, p.weights, p.writes) for p in workload] == [
        ("q", 4 * 6 * 2, 12, 8),
        ("k", 4 * 6 * 3, 18, 12),
        ("o", 4 * 5 * 2, 10, 8),
    ]
    assert workload.live == [24 + 8, 24 + 20, 20 + 8]

    network, inputs = nn.RNN(nn.OptimizedLSTMCell(8)), jax.ShapeDtypeStruct((1, 5, 3), jnp.float32)
    params = networks.variables(network, inputs)
    workload = trace(network.apply, params, inputs)
    assert {product.path for product in workload} == {path for path in leaves_by_path(params) if "kernel" in path}
    assert workload.macs == 5 * 4 * 8 * (3 + 8)


def test_what_a_count_rests_on_is_noted():
    def notes(apply, params):
        return " ".join(trace(apply, params, X).notes)

    assert "a while loop of unknown length is counted once" in notes(*WAYS["in a while loop"][:2])
    assert "all 2 branches are counted" in notes(*WAYS["in branches"][:2])
    assert "both sides are leaves, k is taken for the weights and q is not" in notes(*MIXED["multiplied"][:2])

    def called(p, x):
        return jax.pure_callback(lambda w, x: x @ w, jax.ShapeDtypeStruct((4, 6), "float32"), p["w"], x)

    assert "pure_callback is not looked into" in notes(called, W)
    assert notes(*WAYS["in a stack"][:2]) == ""


def test_products_of_activations_have_no_leaf_and_no_weights():
    def attention(p, x):
        q, k = x @ p["q"], x @ p["k"]
        return jnp.einsum("bqi,bki->bqk", q, k)

    workload = trace(attention, arrays(q=(6, 8), k=(6, 8)), jnp.ones((2, 5, 6)))
    scores = workload.products[-1]
    assert (scores.path, scores.weighted, scores.copies) == (None, 0, 0)
    assert (scores.groups, scores.batch, scores.depth, scores.columns) == (2, 5, 8, 5)
    assert not workload.unattributed


def test_products_of_constants_are_left_out():
    def apply(p, x):
        return x @ p["w"] + jnp.asarray(MASK, jnp.float32)[:4] @ jnp.ones((6, 6))

    assert [product.path for product in trace(apply, W, X)] == ["w"]


def multiplications(out, kernel, stride=1, dilation=1, apart=1, low=0):
    """Along one axis, one by one: pairs of an output and a tap; with pixels apart only those that meet a pixel."""
    pairs = itertools.product(range(out), range(kernel))
    return sum((o * stride + t * dilation - low) % apart == 0 for o, t in pairs)


# convolutions: (shape of the image, of the kernel, options)
CONVOLUTIONS = {
    "channels last": ((2, 9, 8, 4), (3, 2, 4, 6), {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}),
    "channels first": ((2, 4, 9, 8), (6, 4, 3, 2), {}),
    "torch's, of odd layout": ((9, 2, 4, 8), (3, 6, 2, 4), {"dimension_numbers": ("HNCW", "HOWI", "NHCW")}),
    "strided": ((2, 4, 9, 8), (6, 4, 3, 2), {"window_strides": (2, 3)}),
    "dilated": ((2, 4, 9, 8), (6, 4, 3, 2), {"rhs_dilation": (2, 3)}),
    "grouped": ((2, 4, 9, 8), (6, 2, 3, 2), {"feature_group_count": 2}),
    "depthwise": ((2, 4, 9, 8), (8, 1, 3, 2), {"feature_group_count": 4}),
    "groups of images": ((2, 4, 9, 8), (6, 4, 3, 2), {"batch_group_count": 2}),
    "of a signal": ((2, 4, 9), (6, 4, 3), {}),
    "of a volume": ((2, 4, 5, 6, 7), (6, 4, 2, 2, 3), {}),
    "transposed": ((2, 4, 9, 8), (6, 4, 4, 2), {"lhs_dilation": (2, 2), "padding": ((2, 2), (1, 1))}),
    "transposed, by an uneven stride": (
        (2, 4, 9, 8),
        (6, 4, 3, 3),
        {"lhs_dilation": (3, 3), "padding": ((2, 2), (2, 2))},
    ),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_multiplications_of_convolutions(case):
    image, kernel, options = CONVOLUTIONS[case]
    options = {"window_strides": (1,) * (len(image) - 2), "padding": "VALID"} | options
    numbers = lax.conv_dimension_numbers(image, kernel, options.get("dimension_numbers"))
    x, w = jnp.ones(image), jnp.ones(kernel)
    (product,) = trace(lambda p, x: lax.conv_general_dilated(x, p["w"], **options), {"w": w}, x)

    out = jax.eval_shape(lambda: lax.conv_general_dilated(x, w, **options)).shape
    along = zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    expected = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    for axis, (_, of_kernel, of_out) in enumerate(along):
        apart = options.get("lhs_dilation", (1,) * 3)[axis]
        low = options["padding"][axis][0] if apart > 1 else 0
        expected *= multiplications(
            out[of_out],
            kernel[of_kernel],
            options["window_strides"][axis],
            options.get("rhs_dilation", (1,) * 3)[axis],
            apart,
            low,
        )
    assert product.macs == expected
    assert product.weights == math.prod(kernel)
    assert product.reads == math.prod(image)
    assert product.writes == math.prod(out)
    assert product.repeat * product.groups * product.rows * product.depth * product.columns == product.macs
    assert bool(product.depthwise) == (case == "depthwise")


def test_backpropagation_multiplies_twice_more():
    """Once for the gradient of every weight, and once for that of every activation but the input."""

    def loss(p, x):
        y = lax.conv_general_dilated(x, p["k"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(jnp.tanh(y).reshape(len(x), -1) @ p["w"])

    params = arrays(k=(3, 3, 2, 4), w=(6 * 6 * 4, 5))
    x = jnp.ones((2, 8, 8, 2))
    convolution, dense = trace(loss, params, x)
    assert trace(jax.grad(loss), params, x).macs == 2 * convolution.macs + 3 * dense.macs


def test_rows_that_choose_a_matrix_each_are_multiplied_once():
    def experts(p, x, sizes):
        return lax.ragged_dot(x, p["w"], sizes)

    (product,) = trace(experts, arrays(w=(3, 6, 5)), jnp.ones((12, 6)), jnp.array([4, 5, 3]))
    assert (product.path, product.macs, product.weights) == ("w", 12 * 6 * 5, 3 * 6 * 5)


@given(
    shared=st.lists(st.integers(1, 4), max_size=2),
    summed=st.lists(st.integers(1, 4), max_size=3),
    left=st.lists(st.integers(1, 4), max_size=2),
    right=st.lists(st.integers(1, 4), max_size=2),
    seed=st.integers(0, 99),
)
def test_any_contraction_multiplies_once_for_every_combination_of_its_axes(shared, summed, left, right, seed):
    groups = dict(zip("bskn", (shared, summed, left, right), strict=True))
    axes = {letter + str(i): n for letter, sizes in groups.items() for i, n in enumerate(sizes)}
    letters = {axis: chr(ord("a") + i) for i, axis in enumerate(axes)}
    rng = np.random.default_rng(seed)

    def shuffled(kinds):
        return list(rng.permutation([axis for axis in axes if axis[0] in kinds]))

    sides = [shuffled(kinds) for kinds in ("bsk", "bsn", "bkn")]
    a, b, out = ("".join(letters[axis] for axis in side) for side in sides)
    x, w = (jnp.ones([axes[axis] for axis in side]) for side in sides[:2])
    workload = trace(lambda p, x: jnp.einsum(f"{a},{b}->{out}", x, p["w"]), {"w": w}, x)
    if workload.products:  # a product of scalars alone is no matrix product
        assert workload.macs == math.prod(axes.values())
        assert workload.products[0].path == "w"


# blocks of products alone, of rows of six numbers: what a block does with its weights, and the weights' shape
LINEAR = {
    "dense": (lambda x, w: x @ w, (6, 6)),
    "narrow": (lambda x, w: (x @ w[:, :2]) @ w[:, 2:4].T, (6, 5)),
    "heads": (lambda x, w: jnp.einsum("bhi,hij->bhj", x.reshape(-1, 2, 3), w).reshape(-1, 6), (2, 3, 3)),
    "turned": (lambda x, w: (x.reshape(-1, 3, 2).transpose(0, 2, 1) @ w).reshape(-1, 6), (3, 3)),
    "attention": (lambda x, w: (x @ w @ x.T) @ x, (6, 6)),
    "called": (lambda x, w: jax.jit(jax.checkpoint(jnp.dot))(x, w.T), (6, 6)),
    "over examples": (lambda x, w: jax.vmap(lambda x: w @ x)(x), (6, 6)),
    "of weights": (lambda x, w: x @ (w @ w), (6, 6)),
}


@given(names=st.lists(st.sampled_from(sorted(LINEAR)), min_size=1, max_size=5))
def test_random_programs_of_products_multiply_as_often_as_the_compiler_counts(names):
    params = arrays(**{f"{i} {name}": LINEAR[name][1] for i, name in enumerate(names)})

    def apply(p, x):
        for path, w in p.items():
            x = LINEAR[path.split(maxsplit=1)[1]][0](x, w)
        return x

    workload = trace(apply, params, X)
    counted = jax.jit(apply).lower(params, X).cost_analysis()["flops"]  # a multiplication and an addition each
    assert 2 * workload.macs == counted
    assert {product.path for product in workload if product.path} == set(params)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: lambda p, x: jax.jit(jax.checkpoint(f))(p, x)])
@pytest.mark.parametrize("network", ["attention", "residual", "concatenation", "gate", "scan over layers"])
def test_a_call_changes_nothing(network, wrap):
    apply, params, x, _ = NETWORKS[network]
    plain, called = trace(apply, params, x), trace(wrap(apply), params, x)
    assert called.live == plain.live
    assert [(p.path, p.macs, p.copies) for p in called] == [(p.path, p.macs, p.copies) for p in plain]


def live(apply, shapes, x):
    return trace(apply, arrays(**shapes), x).live


def test_elementwise_operations_overwrite_what_nothing_else_needs():
    def apply(p, x):
        h = x @ p["w"] + p["b"][None]
        return jax.nn.gelu(h * jax.nn.sigmoid(h)) @ p["v"]

    assert live(apply, {"w": (6, 9), "b": (9,), "v": (9, 2)}, X) == [4 * 6 + 4 * 9, 4 * 9 + 4 * 2]


def test_an_activation_that_is_needed_before_and_after_is_stored_twice():
    def apply(p, x):
        h = x @ p["w"]
        return h + jnp.tanh(h) @ p["v"]

    x, h = 4 * 6, 4 * 9
    assert live(apply, {"w": (6, 9), "v": (9, 9)}, X) == [max(x + h, h + h), h + h + h]


def test_two_running_sums_take_no_more_memory_with_every_layer():
    def apply(p, x):
        total = x
        for _ in range(4):
            x = x + jnp.tanh(x @ p["w"])
            total = total + x
        return total

    n = X.size
    assert live(apply, {"w": (6, 6)}, X) == [2 * n, 3 * n, 3 * n, 3 * n]


def test_pooling_writes_beside_what_it_reads():
    def apply(p, x):
        y = lax.conv_general_dilated(x, p["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        y = nn.max_pool(jax.nn.relu(y), (2, 2), (2, 2))
        return lax.conv_general_dilated(y, p["k2"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    wide, pooled, out = 6 * 6 * 4, 3 * 3 * 4, 3 * 3 * 2
    x = jnp.ones((1, 6, 6, 1))
    assert live(apply, {"k": (3, 3, 1, 4), "k2": (3, 3, 4, 2)}, x) == [36 + wide, pooled + out]
    many = jnp.ones((1, 6, 6, 8))
    shapes = {"k": (3, 3, 8, 1), "k2": (3, 3, 1, 1)}
    assert live(apply, shapes, many) == [36 * 8 + 36, 9 + 9]
    few = arrays(**shapes)
    pool = next(t for t in trace(apply, few, many).tensors if "reduce_window" in t.name)
    assert (pool.born, pool.dies) == (0.5, 1)


def test_parts_that_are_laid_end_to_end_are_not_moved():
    def apply(p, x):
        both = jnp.concatenate([x @ p["a"], jnp.tanh(x @ p["b"])], 1)
        return both @ p["c"]

    a, b, c = 4 * 3, 4 * 5, 4 * 2
    assert live(apply, {"a": (6, 3), "b": (6, 5), "c": (8, 2)}, X) == [24 + a, 24 + a + b, a + b + c]


def test_a_loop_keeps_its_inputs_and_collects_its_outputs():
    steps, batch, inputs, width = 7, 2, 6, 9

    def apply(p, xs):
        def step(h, x):
            h = jnp.tanh(x @ p["wx"] + h @ p["wh"])
            return h, h

        return lax.scan(step, jnp.zeros((batch, width)), xs)[1]

    workload = trace(apply, arrays(wx=(inputs, width), wh=(width, width)), jnp.ones((steps, batch, inputs)))
    given, collected, h = steps * batch * inputs, steps * batch * width, batch * width
    assert workload.live == [given + collected + 2 * h, given + collected + 3 * h]
    assert [product.repeat for product in workload] == [steps, steps]


def test_a_cache_is_written_in_place():
    def apply(p, cache, x):
        cache = lax.dynamic_update_slice(cache, x @ p["w"], (2, 0))
        return jnp.tanh(cache) @ p["v"]

    workload = trace(apply, arrays(w=(6, 6), v=(6, 3)), jnp.ones((50, 6)), jnp.ones((1, 6)))
    assert workload.live == [300 + 6 + 6, 300 + 150]


def test_live_counts_at_the_products_and_between_them():
    tensors = (Tensor("a", 3, -1, -0.5), Tensor("b", 5, -0.5, 0), Tensor("c", 7, 0, 0.5), Tensor("d", 11, 0.5, 2))
    products = (Product("p", None, 1, 1, 1, 1), Product("q", None, 1, 1, 1, 1))
    assert Workload(products, tensors).live == [18, 11]
    assert Workload((), tensors[:1]).live == []


def nnx_and_equinox():
    module, net = (PYTREES[kind][0]() for kind in ("nnx module", "equinox"))
    x = jnp.zeros((1, 1, 2, 1))

    def run(net, x):
        y = net.conv(x)
        return net.fc(net.activation(y).reshape(len(y), -1))

    graph, state, rest = nnx.split(module, nnx.Param, ...)
    split = (lambda state, x: run(nnx.merge(graph, state, rest), x)), state, x
    batched = (
        (lambda net, x: jax.vmap(lambda x: net.fc(jax.nn.relu(net.conv(x)).ravel()))(x)),
        net,
        jnp.zeros((3, 1, 3, 4)),
    )
    return {"module": (run, module, x), "state": split, "equinox": batched}


@pytest.mark.parametrize(("kind", "kernel"), [("module", "kernel"), ("state", "kernel"), ("equinox", "weight")])
def test_modules_of_other_libraries(kind, kernel):
    apply, params, x = nnx_and_equinox()[kind]
    conv, fc = trace(apply, params, x)
    assert (conv.path, fc.path) == (f"conv/{kernel}", f"fc/{kernel}")
    assert fc.macs == len(x) * 4 * 3


def test_shapes_are_enough_and_the_model_is_traced_once():
    times = []

    def apply(p, x):
        times.append(1)
        return x @ p["w"]

    shapes = jax.eval_shape(lambda: W)
    workload = trace(apply, shapes, jax.ShapeDtypeStruct((4, 6), jnp.float32))
    assert workload.macs == 4 * 36
    assert len(times) == 1


def test_names_are_scopes_else_layers_and_are_told_apart():
    def apply(p, x):
        with jax.named_scope("head"):
            x = x @ p["layer"]["kernel"]
        return x @ p["layer"]["kernel"] @ p["layer"]["kernel"]

    assert [p.name for p in trace(apply, {"layer": {"kernel": W["w"]}}, X)] == ["head", "layer", "layer #2"]


def test_a_workload_prints_within_140_columns():
    workload = traced("BERT-base")
    lines = str(workload).splitlines()
    assert max(map(len, lines)) <= 140
    assert lines[-1] == "lookup: Bert/words: 128 rows of 768 from params/words/embedding"
    total = next(line for line in lines if "total" in line)
    assert "11,173.626" in total and f"{12 * 12 * 768**2:,}" in total


def test_numbers_of_products_can_be_differentiated_and_stacked():
    workload = traced("MobileNetV2 for a microcontroller")
    stacked = jax.jit(lambda workload: workload.stacked.macs.sum())(workload)
    np.testing.assert_allclose(stacked, workload.macs, rtol=1e-6)
    product = workload.products[5]
    slope = jax.grad(lambda inputs: Product("", None, 1, 1, inputs, 8.0, 3, 3, 9, 9, 9, 9).macs)(16.0)
    assert slope == 8 * 9 * 81
    assert product.copies == 1
