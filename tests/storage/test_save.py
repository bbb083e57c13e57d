"""Members of every constraint come back from disk, bit for bit but for sums, at the bytes of their footprints."""

import dataclasses
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcomp as jc
from jaxcomp.storage import load, save
from tests.constraints.test_contract import CONSTRAINTS, OF_KERNELS

SHAPES = {"io": (256, 256), "hwio": (3, 3, 64, 64)}
DTYPES = "float32", "bfloat16"
DENSE = {"box", "any projection", "l1 balls", "l2 balls of fragments", "simplices", "box in an l1 ball"}
DENSE |= {"boxed l2 balls", "boxed l1 balls", "fixed mask"}  # what these promise is what the leaf takes
SUMS = {"low rank", "affine"}  # which come back to rounding
QUICK = {"sparse columns of blocks", "polarized", "circulant", "tied magnitudes", "box"}
SLOW = {"sparse", "2:4", "patterned, sparse", "gather-scatter", "uniform", "codebook", "compacted", "unified, pruned"}
SLOW |= {
    "polarized values",
    "sparse, binary",
    "low rank",
    "affine",
    "power of two",
    "conductances",
}  # a constraint of every form


def cases():
    """Shapes and dtypes in turn; under the thorough profile of hypothesis, all constraints on all of them."""
    thorough = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
    names = [name for name in CONSTRAINTS if name != "patterned, balanced"]  # whose library is of three taps
    for row, name in enumerate(names):
        table = [(a, d) for a in SHAPES for d in DTYPES if not (name in OF_KERNELS and a == "io")]
        for axes, dtype in table if thorough else [table[row % len(table)]] * (name in QUICK | SLOW):
            yield pytest.param(name, axes, dtype, marks=() if name in QUICK else pytest.mark.slow)


def member(name, axes, dtype):
    x = jax.random.normal(jax.random.key(1), SHAPES[axes]).astype(dtype)
    spec = jc.assign({"w": x}, {"w": CONSTRAINTS[name](jc.Layout(axes))})
    return spec, jc.project(spec, {"w": x})


@pytest.mark.parametrize("name, axes, dtype", list(cases()))
@pytest.mark.optimised
def test_every_member_takes_the_bytes_of_its_footprint_and_comes_back(name, axes, dtype, tmp_path):
    spec, params = member(name, axes, dtype)
    saved = save(tmp_path / "model", params, spec)
    back = load(tmp_path / "model")["w"]
    assert back.dtype == params["w"].dtype
    (leaf,) = saved.leaves
    assert (leaf.form == "as it stands") == (name in DENSE)
    assert leaf.bytes <= 1.02 * leaf.footprint_bytes
    wide, found = (np.asarray(x, np.float64) for x in (params["w"], back))
    assert leaf.error == np.linalg.norm(found - wide) / np.linalg.norm(wide)
    assert (0 < leaf.error <= jnp.finfo(dtype).eps) if name in SUMS else leaf.error == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SUMS))
def test_sums_are_kept_bit_for_bit_where_that_is_asked(name, tmp_path):
    spec, params = member(name, "io", "float32")
    (leaf,) = save(tmp_path / "model", params, spec, tolerance=0.0).leaves
    assert leaf.error == 0
    assert np.array_equal(load(tmp_path / "model")["w"], params["w"])


NETWORK = {
    "conv": {"kernel": (3, 3, 8, 16), "bias": (16,)},
    "fc1": {"kernel": (64, 32), "bias": (32,)},
    "fc2": {"kernel": (32, 10)},
}


def network():
    shapes, structure = jax.tree.flatten(NETWORK, is_leaf=lambda leaf: isinstance(leaf, tuple))
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes])


JOINTS = {
    "together": lambda: jc.Together(jc.Sparse(0.2)),
    "one scale": lambda: jc.Together(jc.Quantized(jc.Binary())),
    "blocks of all": lambda: jc.Together(jc.Chain(jc.Sparse(0.3, jc.blocks(8, 1)), jc.Quantized(jc.Uniform(4)))),
    "shared across": lambda: jc.Together(jc.Tied(jc.blocks(7, 1))),
    "each": lambda: jc.Each(jc.Sparse(0.5, jc.outputs())),
    "chain": lambda: jc.JointChain(jc.Together(jc.Sparse(0.5)), jc.Quantized(jc.Binary())),
    "budget": lambda: jc.Budget((jc.Sparse(0.1), jc.Sparse(0.5)), budget=40_000.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", JOINTS)
def test_leaves_under_one_constraint_are_packed_one_by_one(name, tmp_path):
    params = network()
    spec = jc.assign(params, {".*/kernel": JOINTS[name]()})
    params = jc.project(spec, params)
    saved = save(tmp_path / "model", params, spec)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, load(tmp_path / "model", like=params), params)))
    kernels = [leaf for leaf in saved.leaves if "kernel" in leaf.path]
    promised = sum(leaf.footprint_bytes for leaf in kernels)
    assert sum(leaf.bytes for leaf in kernels) <= 1.02 * promised + 8 * len(kernels)


@pytest.mark.slow
def test_channels_of_several_leaves_are_dropped_in_each(tmp_path):
    params = network()
    views = {"fc1/.*": jc.outputs(), "fc2/kernel": jc.inputs()}
    spec = jc.assign(params, {"fc[12]/.*": jc.Coupled(jc.Sparse(0.25, jc.outputs()), views)})
    params = jc.project(spec, params)
    saved = {leaf.path: leaf for leaf in save(tmp_path / "model", params, spec).leaves}
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, load(tmp_path / "model", like=params), params)))
    assert saved["fc1/kernel"].bytes == 64 * 8 * 4 + 4
    assert saved["fc2/kernel"].bytes == 8 * 10 * 4 + 4
    assert saved["fc1/bias"].bytes == 8 * 4 + 4
    assert saved["conv/kernel"].bytes == 3 * 3 * 8 * 16 * 4


def test_a_constraint_of_ones_own_names_its_forms(tmp_path):
    @jc.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Stairs(jc.Constraint):
        def project(self, x):
            return jnp.round(x)

    @jc.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Packed(Stairs):
        def forms(self, x):
            return (jc.constraints.forms.Codes(jc.whole(), np.arange(1.0, 8)),)

    params = {"w": jnp.round(jax.random.normal(jax.random.key(0), (64, 64)))}
    plain, packed = (save(tmp_path / c.__name__, params, {"w": c()}).leaves[0] for c in (Stairs, Packed))
    assert plain.bytes == 64 * 64 * 4
    assert packed.bytes <= 64 * 64 / 2 + 4
    assert np.array_equal(load(tmp_path / "Packed")["w"], params["w"])


def test_dtypes_and_shapes_come_back_as_they_were(tmp_path):
    params = {
        "f64": np.linspace(0, 1, 3),
        "bf16": jnp.ones((2, 0, 3), jnp.bfloat16),
        "f16": jnp.full((), -0.0, jnp.float16),
        "i64": np.arange(3) << 40,
        "u8": jnp.arange(5, dtype=jnp.uint8),
        "bool": jnp.array([True, False]),
        "nan": jnp.array([np.nan, np.inf]),
    }
    save(tmp_path / "model", params)
    back = load(tmp_path / "model", like=params)
    for name, x in params.items():
        assert (back[name].dtype, back[name].shape) == (x.dtype, x.shape)
        assert np.asarray(back[name]).tobytes() == np.asarray(x).tobytes()
        assert isinstance(back[name], np.ndarray if "64" in name else jax.Array)


def test_what_is_no_array_is_left_out_and_stays_in_the_tree_that_is_given(tmp_path):
    params = {"w": jnp.ones(3), "f": jnp.tanh, "key": jax.random.key(0), "name": "a"}
    saved = save(tmp_path / "model", params)
    assert [leaf.path for leaf in saved.leaves] == ["w"]
    back = load(tmp_path / "model", like=params | {"w": jax.ShapeDtypeStruct((3,), jnp.float32)})
    assert back["f"] is jnp.tanh and back["name"] == "a" and back["w"].tolist() == [1, 1, 1]


def test_without_a_tree_to_be_like_dicts_within_dicts_come_back(tmp_path):
    save(tmp_path / "model", {"a": [jnp.zeros(1), {"b": jnp.ones(1)}]})
    assert jax.tree.map(np.shape, load(tmp_path / "model")) == {"a": {"0": (1,), "1": {"b": (1,)}}}
    save(tmp_path / "alone", jnp.ones(2))
    assert load(tmp_path / "alone").tolist() == [1, 1]
    save(tmp_path / "clash", {"a": jnp.zeros(1), "a/b": jnp.zeros(1)})
    with pytest.raises(ValueError, match=r"leaf 'a/b' lies within another leaf: pass the tree"):
        load(tmp_path / "clash")


def test_the_table_says_what_every_leaf_takes(tmp_path):
    params = {"w": jnp.zeros((64, 64)).at[0].set(1.0), "b": jnp.zeros(64)}
    saved = save(tmp_path / "model", params, {"w": jc.Sparse(0.1)})
    assert [(leaf.path, leaf.form) for leaf in saved.leaves] == [("b", "as it stands"), ("w", "support by elements()")]
    assert "support by elements()" in str(saved) and "names and checksums" in str(saved)
    assert saved.bytes == sum(file.stat().st_size for file in (tmp_path / "model").iterdir())


def test_names_and_checksums_take_about_a_kilobyte_and_some_hundred_bytes_a_leaf(tmp_path):
    params = {f"layer{i}": jnp.ones((64, 64)) for i in range(20)}
    saved = save(tmp_path / "model", params, dict.fromkeys(params, jc.Tied(jc.blocks(8, 8))))
    assert saved.overhead_bytes <= 1024 + 20 * 400


def test_a_folder_that_is_there_is_not_touched_unless_asked(tmp_path):
    save(tmp_path / "model", {"a": jnp.zeros(1)})
    with pytest.raises(ValueError, match=r"model is there already: pass overwrite=True"):
        save(tmp_path / "model", {"a": jnp.ones(1)})
    assert load(tmp_path / "model")["a"].tolist() == [0]
    save(tmp_path / "model", {"a": jnp.ones(1)}, overwrite=True)
    assert load(tmp_path / "model")["a"].tolist() == [1]
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds what jaxcomp.save did not write, \['notes.txt'\]"):
        save(tmp_path / "model", {"a": jnp.zeros(1)}, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["model"]


def test_a_save_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    save(tmp_path / "model", {"a": jnp.zeros(1)})

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    for path, options in (("model", {"overwrite": True}), ("other", {})):
        with pytest.raises(OSError, match="no space"):
            save(tmp_path / path, {"a": jnp.ones(1)}, **options)
    assert os.listdir(tmp_path) == ["model"]
    assert load(tmp_path / "model")["a"].tolist() == [0]


@pytest.mark.parametrize(
    "params, options, message",
    [
        ({"w": jnp.zeros(2, jnp.complex64)}, {}, r"no name for, \{'w': 'complex64'\}: cast"),
        ({"w": jnp.zeros(2)}, {"tolerance": -1.0}, r"tolerance must lie in \[0, 1\), found -1.0"),
        ({"w": jnp.zeros(2)}, {"spec": {"v": jc.Sparse(0.5)}}, r"no leaf at \['v'\]"),
    ],
)
def test_misuse_is_named(params, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "model", params, **options)
    assert not list(tmp_path.iterdir())


def test_the_tensors_are_a_file_of_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    save(tmp_path / "model", {"w": jnp.arange(6.0).reshape(2, 3)})
    with safetensors.safe_open(tmp_path / "model" / "tensors.safetensors", "np") as file:
        assert file.get_tensor("w").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_without_safetensors_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxcomp\[storage\]'"):
        save(tmp_path / "model", {"w": jnp.ones(2)})
