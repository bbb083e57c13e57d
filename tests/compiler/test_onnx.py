"""What leaves for ONNX Runtime gives there what the compiled model gives here, and what cannot leave says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcomp as jc
from jaxcomp.compiler import compile as compiled
from jaxcomp.compiler import save_onnx

runtime = pytest.importorskip("onnxruntime", reason="needs the packages of the extra 'onnx'")
pytest.importorskip("jax2onnx", reason="needs the packages of the extra 'onnx'")


def perceptron(p, x):
    return jax.nn.relu(x @ p["w"]) @ p["v"]


@pytest.fixture(scope="module")
def params():
    shapes = {"w": (64, 96), "v": (96, 32)}
    params = {path: jax.random.normal(jax.random.key(0), shape) / 10 for path, shape in shapes.items()}
    return jc.project({path: jc.Sparse(0.2, jc.block_columns(16, shape[0])) for path, shape in shapes.items()}, params)


def test_a_compiled_model_runs_in_onnx_runtime(params, tmp_path):
    x = jax.random.normal(jax.random.key(1), (3, 64))
    model = compiled(perceptron, params, {"w": jc.FixedMask().fit(params["w"])}, x, rounds=0)
    report = save_onnx(model, tmp_path / "model.onnx", x, rounds=1)
    session = runtime.InferenceSession((tmp_path / "model.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: np.asarray(x)})
    np.testing.assert_allclose(found, perceptron(params, x), rtol=1e-4, atol=1e-5)
    assert report.difference < 1e-4 and report.int8_s is None and not report.int8
    assert report.bytes == (tmp_path / "model.onnx").stat().st_size


def test_eight_bits_are_written_where_they_are_faster_and_only_there(params, tmp_path, monkeypatch):
    x = jax.random.normal(jax.random.key(1), (3, 64))
    model = compiled(perceptron, params, {}, x, rounds=0)
    reports = []
    for times in ([2.0, 1.0], [1.0, 2.0]):
        monkeypatch.setattr("jaxcomp.compiler._onnx.in_turns", lambda runs, rounds, times=times: np.array([times]))
        reports.append(save_onnx(model, tmp_path / "model.onnx", x, int8=True))
    assert [report.int8 for report in reports] == [True, False]
    assert reports[0].bytes < reports[1].bytes / 2 and 1e-5 < reports[0].difference < 0.1
    assert reports[0].int8_s == 1.0


def test_stacks_of_matrices_stay_as_they_are_in_eight_bits(tmp_path):
    params = {"w": jax.random.normal(jax.random.key(0), (4, 16, 8)), "v": jax.random.normal(jax.random.key(1), (32, 5))}

    def stacked(p, x):
        return (x @ p["w"]).swapaxes(0, 1).reshape(3, 32) @ p["v"]

    x = jax.random.normal(jax.random.key(2), (4, 3, 16))
    model = compiled(stacked, params, {}, x, rounds=0)
    report = save_onnx(model, tmp_path / "model.onnx", x, int8=True, rounds=1)
    assert report.int8_s is not None and report.difference < 1


def test_other_shapes_than_it_was_compiled_for_are_refused(params, tmp_path):
    model = jc.compile(lambda p, x: x @ p["w"], params, {}, jnp.ones((2, 64)), rounds=0)
    with pytest.raises(ValueError, match="compile again for these shapes"):
        jc.save_onnx(model, tmp_path / "model.onnx", jnp.ones((3, 64)))


def test_what_onnx_cannot_say_is_named(tmp_path):
    def backwards(p, xs):
        return lax.scan(lambda h, x: (jnp.tanh(h @ p["w"] + x), None), xs[0], xs, reverse=True)[0]

    xs = jnp.ones((3, 2, 8))
    model = compiled(backwards, {"w": jnp.eye(8)}, {}, xs, rounds=0)
    with pytest.raises(ValueError, match=r"(?s)ONNX cannot say all of this model: .*jax.export"):
        save_onnx(model, tmp_path / "model.onnx", xs)


def test_a_missing_package_is_named_with_the_extra(tmp_path, monkeypatch):
    x = jnp.ones((1, 4))
    model = compiled(lambda p, x: x @ p["w"], {"w": jnp.eye(4)}, {}, x, rounds=0)
    monkeypatch.setitem(__import__("sys").modules, "jax2onnx", None)
    with pytest.raises(ImportError, match=r"needs jax2onnx: pip install 'jaxcomp\[onnx\]'"):
        save_onnx(model, tmp_path / "model.onnx", x)
