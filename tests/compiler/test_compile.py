"""What is compiled gives what the model gave, whatever the model and the constraint, and says what it did."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

import jaxcomp as jc
from jaxcomp.compiler import compile as compiled


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, with leaves 'w' (and 'v') to compress and inputs to try."""

    apply: object
    params: dict
    inputs: tuple


def _dense():
    params = {"w": normal(0, 32, 48), "b": normal(1, 48)}
    return Case(lambda p, x: jnp.tanh(x @ p["w"] + p["b"][None]), params, (normal(2, 3, 32),))


def _transposed():
    """The weights first, a stack of matrices beside a stack of activations, and the result turned."""
    params = {"w": normal(0, 3, 32, 64)}
    return Case(lambda p, x: jnp.einsum("hio,bhi->hob", p["w"], x), params, (normal(2, 2, 3, 32),))


def _masked():
    """Weights that are scaled, masked, cast and reshaped on their way."""
    mask = np.arange(32 * 48).reshape(32, 48) % 3 > 0

    def apply(p, x):
        w = (p["w"].reshape(32, 48) * mask * 2).astype(jnp.bfloat16).astype(jnp.float32)
        return x @ w

    return Case(apply, {"w": normal(0, 32, 6, 8)}, (normal(2, 3, 32),))


def _convolution(**how):
    params = {"w": normal(0, 3, 3, 8, 16)}
    numbers = ("NHWC", "HWIO", "NHWC")
    apply = functools.partial(lax.conv_general_dilated, **how)
    return Case(lambda p, x: apply(x, p["w"], dimension_numbers=numbers), params, (normal(2, 2, 9, 8, 8),))


def _channels_first():
    params = {"w": normal(0, 16, 8, 3, 3)}
    return Case(
        lambda p, x: lax.conv_general_dilated(x, p["w"], (2, 1), [(1, 0), (2, 1)], rhs_dilation=(1, 2)),
        params,
        (normal(2, 2, 8, 9, 11),),
    )


def _recurrent():
    """The same weights at every step of a scan."""
    params = {"w": normal(0, 16, 64), "v": normal(1, 64, 64) / 8}

    def apply(p, xs):
        def step(h, x):
            h = jnp.tanh(x @ p["w"] + h @ p["v"])
            return h, h

        return lax.scan(step, jnp.zeros((2, 64)), xs, reverse=True)

    return Case(apply, params, (normal(2, 5, 2, 16),))


def _layers():
    """A stack of layers that a scan goes through, under rematerialization, with a branch inside."""
    params = {"w": normal(0, 4, 64, 64) / 8, "b": normal(1, 4, 64)}

    def apply(p, x):
        @jax.checkpoint
        def layer(h, p):
            y = h @ p["w"] + p["b"][None]
            return lax.cond(jnp.sum(h) > 0, lambda: jnp.tanh(y) @ p["w"], lambda: y), None

        return lax.scan(layer, x, p)[0]

    return Case(apply, params, (normal(2, 3, 64),))


def _nested():
    """A scan of scans: of the outer one's layers, one at every step of the inner one."""
    params = {"w": normal(0, 2, 3, 64, 64) / 8, "v": normal(1, 2, 64, 64) / 8}

    def apply(p, x):
        def outer(h, p):
            return lax.scan(lambda h, w: (jnp.tanh(h @ w) @ p["v"], None), h, p["w"])[0], None

        return lax.scan(outer, x, p)[0]

    return Case(apply, params, (normal(2, 3, 64),))


def _loop():
    params = {"w": normal(0, 64, 64) / 8}

    def apply(p, x):
        step = jax.jit(lambda h: jnp.tanh(h @ p["w"]))
        return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, step(c[1])), (0, x))[1]

    return Case(apply, params, (normal(2, 3, 64),))


MODELS = {
    "dense": _dense,
    "transposed": _transposed,
    "masked": _masked,
    "convolution": functools.partial(_convolution, window_strides=(1, 1), padding="SAME"),
    "strided convolution": functools.partial(_convolution, window_strides=(2, 1), padding="VALID", rhs_dilation=(2, 1)),
    "channels first": _channels_first,
    "recurrent": _recurrent,
    "layers": _layers,
    "nested": _nested,
    "loop": _loop,
}


def pruned(params, seed=5):
    """Leaves 'w' and 'v' with zeros that formats make use of: of rows, and of strips of eight columns within others."""

    def mask(x):
        rows, columns = x.shape[-2:] if x.shape[-1] >= 8 else x.shape[:2]
        keep = jax.random.uniform(jax.random.key(seed), (rows, columns // 8)) < 0.2
        keep = jnp.repeat(keep, 8, 1).at[: rows // 2].set(False)
        return keep if x.shape[-1] >= 8 else keep[..., None, None]

    return {path: x * jnp.broadcast_to(mask(x), x.shape) if path in "wv" else x for path, x in params.items()}


def spec_of(params):
    return {path: jc.FixedMask().fit(x) for path, x in params.items() if path in "wv"}


@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_model_gives_what_the_model_gave(name):
    case = MODELS[name]()
    params = pruned(case.params)
    model = compiled(case.apply, params, spec_of(params), *case.inputs, rounds=0)
    assert model.report.bytes < 0.7 * model.report.dense_bytes
    assert model.params["products"] or model.report.removed
    want, found = case.apply(params, *case.inputs), model(*case.inputs)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, want)


@pytest.fixture(scope="module")
def perceptron():
    """Compiled for three rows: the case, its pruned parameters, the model."""
    case = _dense()
    params = pruned(case.params)
    return case, params, compiled(case.apply, params, spec_of(params), *case.inputs, rounds=0)


def test_it_runs_under_jit_vmap_and_grad(perceptron):
    case, params, model = perceptron
    (x,) = case.inputs
    np.testing.assert_allclose(
        jax.jit(lambda m, x: 2 * m(x))(model, x), 2 * case.apply(params, x), rtol=1e-5, atol=1e-6
    )
    xs = normal(7, 4, *x.shape)
    np.testing.assert_allclose(jax.vmap(model)(xs), [case.apply(params, x) for x in xs], rtol=1e-5, atol=1e-6)

    def energy(f, x):
        return jnp.sum(f(x) ** 2)

    want, found = (jax.grad(energy, 1)(f, x) for f in (jax.tree_util.Partial(case.apply, params), model))
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_it_can_be_exported_and_read_back(perceptron):
    case, _, model = perceptron
    (x,) = case.inputs
    exported = export.export(jax.jit(model))(jax.ShapeDtypeStruct(x.shape, x.dtype))
    again = export.deserialize(exported.serialize())
    np.testing.assert_allclose(again.call(x), model(x), rtol=1e-6)


def test_other_shapes_than_it_was_compiled_for_are_refused(perceptron):
    model = perceptron[2]
    with pytest.raises(ValueError, match=r"compiled for inputs .*\(3, 32\).*found .*\(4, 32\)"):
        model(jnp.ones((4, 32)))


def test_a_leaf_that_the_parameters_lack_is_named(perceptron):
    case, params, _ = perceptron
    with pytest.raises(ValueError, match="no leaf at \\['u'\\]"):
        compiled(case.apply, params, {"u": jc.FixedMask()}, *case.inputs)


def test_weights_must_be_known(perceptron):
    case, params, _ = perceptron
    with pytest.raises(ValueError, match="leaf 'w' is a tracer"):
        jax.jit(lambda p: compiled(case.apply, p, {"w": jc.FixedMask()}, *case.inputs))(params)


def test_leaves_without_a_constraint_and_without_structure_stay_as_they_are():
    params = {"w": normal(0, 16, 24), "free": pruned({"w": normal(1, 24, 16)})["w"]}
    x = normal(2, 3, 16)
    model = compiled(lambda p, x: x @ p["w"] @ p["free"], params, {"w": jc.L2Ball(1.0)}, x, rounds=0)
    assert model.params["products"] == {} and set(model.params["leaves"]) == {"w", "free"}
    assert [(p.leaves, p.form) for p in model.report.products] == [(("w",), "dense")]


def test_a_leaf_that_is_read_otherwise_too_stays():
    keep = jax.random.uniform(jax.random.key(3), (64, 16)) < 0.2
    params = {"w": (normal(0, 64, 512) * jnp.repeat(keep, 32, 1)).T}
    tokens = jnp.array([[1, 20, 511]])

    def tied(p, tokens):
        return p["w"][tokens] @ p["w"].T

    model = compiled(tied, params, spec_of(params), tokens, rounds=0)
    assert len(model.params["products"]) == 1 and set(model.params["leaves"]) == {"w"}
    np.testing.assert_allclose(model(tokens), tied(params, tokens), rtol=1e-5, atol=1e-5)


def test_steps_that_are_written_out_share_their_packed_weights():
    params = pruned({"w": normal(0, 64, 64) / 8})

    def unrolled(p, x):
        for _ in range(4):
            x = jnp.tanh(x @ p["w"])
        return x

    x = normal(1, 2, 64)
    model = compiled(unrolled, params, spec_of(params), x, rounds=0)
    assert len(model.report.products) == 4 and len(model.params["products"]) == 1
    assert model.report.bytes < params["w"].nbytes
    np.testing.assert_allclose(model(x), unrolled(params, x), rtol=1e-5, atol=1e-5)


def test_a_constraint_whose_leaf_no_product_reads_is_noted():
    params = {"w": normal(0, 8, 8), "scale": normal(1, 8)}
    x = normal(2, 2, 8)
    spec = {"scale": jc.L2Ball(1.0)}
    model = compiled(lambda p, x: x @ p["w"] * p["scale"][None], params, spec, x, rounds=0)
    assert model.report.notes == ("leaf 'scale' is read by no product that was found",)


def test_a_bias_that_goes_with_its_weights_is_not_noted():
    params = {"w": normal(0, 8, 16), "b": normal(1, 16), "v": normal(2, 16, 8)}
    coupled = jc.Coupled(jc.Sparse(0.5, jc.outputs()), {"[wb]": jc.outputs(), "v": jc.inputs()})
    spec, x = jc.assign(params, {"[wbv]": coupled}), normal(3, 2, 8)
    params = jc.project(spec, params)
    model = compiled(lambda p, x: (x @ p["w"] + p["b"][None]) @ p["v"], params, spec, x, rounds=0)
    assert model.report.notes == ()


def test_without_measuring_the_smallest_form_is_taken_though_it_is_slow():
    """One weight in five anywhere: gathered one by one they are smaller than the matrix, and slower."""
    keep = jax.random.uniform(jax.random.key(4), (64, 64)) < 0.2
    params, x = {"w": normal(0, 64, 64) * keep}, normal(1, 32, 64)
    model = compiled(lambda p, x: x @ p["w"], params, spec_of(params), x, rounds=0)
    assert model.report.bytes < 0.7 * model.report.dense_bytes
    np.testing.assert_allclose(model(x), x @ params["w"], rtol=1e-5, atol=1e-5)


def test_a_model_left_dense_has_no_channels_removed(monkeypatch):
    params = {"w": normal(0, 16, 32).at[:, 1::2].set(0), "v": normal(1, 32, 8)}

    def apply(p, x):
        return jax.nn.relu(x @ p["w"]) @ p["v"]

    x = normal(2, 3, 16)
    assert compiled(apply, params, spec_of(params), x, rounds=0).report.removed
    monkeypatch.setattr("jaxcomp.compiler._compile._whole", lambda *args: np.tile([1.0, 2.0], (3, 1)))
    model = compiled(apply, params, spec_of(params), x, rounds=3)
    assert not model.report.removed and "left dense" in model.report.notes[0]
    assert {each.form for each in model.report.products} == {"dense"}
    assert model.report.bytes == sum(leaf.nbytes for leaf in params.values())


def test_what_was_measured_is_kept_in_a_file_and_not_measured_again(tmp_path, monkeypatch):
    case = _dense()
    params = pruned(case.params)
    first = compiled(case.apply, params, spec_of(params), *case.inputs, rounds=1, cache=tmp_path / "times.json")
    monkeypatch.setattr("jaxcomp.compiler._tune.in_turns", lambda *args: pytest.fail("measured again"))
    again = compiled(case.apply, params, spec_of(params), *case.inputs, rounds=1, cache=tmp_path / "times.json")
    # Whether the whole is then left dense is measured anew, and may turn out otherwise.
    assert [each.tried for each in again.report.products] == [each.tried for each in first.report.products]


@pytest.mark.parametrize("dense, other", [(1.0, 3.0), (2.0, 1.0)])
def test_the_fastest_is_taken_and_never_one_slower_than_dense(dense, other, monkeypatch):
    params, x = pruned({"w": normal(0, 512, 1024)}), normal(1, 64, 512)
    measured = np.array([[dense, *[other] * 9]])
    monkeypatch.setattr("jaxcomp.compiler._tune.in_turns", lambda runs, rounds: measured[:, : len(runs)])
    monkeypatch.setattr("jaxcomp.compiler._compile.in_turns", lambda *args: np.array([[2.0, 1.0]]))
    (product,) = compiled(lambda p, x: x @ p["w"], params, spec_of(params), x).report.products
    assert len(product.tried) > 1 and (product.form == "dense") == (dense < other)
    assert product.seconds <= product.dense_s


def test_a_model_that_is_slower_as_a_whole_is_left_dense(monkeypatch):
    params, x = pruned({"w": normal(0, 512, 1024)}), normal(1, 64, 512)
    measured = np.array([[2.0, *[1.0] * 9]])
    monkeypatch.setattr("jaxcomp.compiler._tune.in_turns", lambda runs, rounds: measured[:, : len(runs)])
    monkeypatch.setattr("jaxcomp.compiler._compile.in_turns", lambda *args: np.array([[2.0, 3.0]]))
    model = compiled(lambda p, x: x @ p["w"], params, spec_of(params), x)
    assert model.params["products"] == {} and "left dense" in model.report.notes[0] and model.report.seconds == 2.0


def test_a_file_that_holds_no_measurements_is_named(tmp_path):
    case = _dense()
    (tmp_path / "times.json").write_text("{")
    with pytest.raises(ValueError, match=r"times\.json holds no measurements"):
        compiled(case.apply, case.params, spec_of(case.params), *case.inputs, cache=tmp_path / "times.json")


def test_the_report_prints_a_row_a_product_and_the_whole(perceptron):
    model = perceptron[2]
    text = str(model.report)
    assert "whole model" in text and model.report.products[0].form.split()[0] in text
    assert model.report.bytes == sum(x.nbytes for x in jax.tree.leaves(model.params)) < model.report.dense_bytes
