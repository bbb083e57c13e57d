"""Folders that were truncated, edited or made up are refused, with a word of what is wrong and no other effect."""

import hashlib
import json
import os
import shutil
import struct

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcomp as jc
from jaxcomp.storage import load, save

FILES = ("tensors.safetensors", "manifest.json", "SHA256SUMS")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with leaves in all forms that are written bit for bit."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 32)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 4, 8)).astype(np.float32)
    library = np.eye(9, dtype=bool)[:4]
    params = {
        "sparse": np.where(abs(x) > 1.9, x, 0),
        "bits": np.where(abs(x) > 1, x, 0),
        "signs": np.where(rng.random((4, 32)).repeat(8, axis=0) < 0.5, abs(x), -abs(x)),
        "circulant": jc.Tied(jc.diagonals(8)).project(x),
        "codes": (rng.integers(-7, 8, (32, 32)) * np.exp(rng.normal(size=(1, 32)))).astype(np.float32),
        "listed": rng.choice(np.array([-1, 0.3, 2], np.float32), (32, 32)),
        "patterns": kernel * library[rng.integers(0, 4, (4, 8))].transpose(2, 0, 1).reshape(kernel.shape),
        "unlike": np.where(rng.random((4, 32)).repeat(8, axis=0) < 0.5, np.sign(x), x),
        "compact": np.where((np.arange(32) % 3 > 0)[:, None], abs(x), 0),
        "dense": x,
    }
    spec = {
        "sparse": jc.Sparse(0.05),
        "bits": jc.Sparse(0.3),
        "signs": jc.Polarized(jc.fragments(8)),
        "circulant": jc.Tied(jc.diagonals(8)),
        "codes": jc.Quantized(jc.Uniform(4), jc.outputs()),
        "listed": jc.Codebook(np.array([-1, 0.3, 2], np.float32)),
        "patterns": jc.Patterned(library),
        "unlike": jc.Unified(0.5, view=jc.fragments(8)),
    }
    spec["compact"] = jc.Compacted(jc.Polarized(jc.fragments(8))).fit(jnp.asarray(params["compact"]))
    halves = {"first": x[:, :9], "second": x[:9]}
    spec |= (together := jc.assign(halves, {".*": jc.Together(jc.Sparse(0.3, jc.blocks(8, 1)))}))
    params |= jc.project(together, halves)
    folder = tmp_path_factory.mktemp("saved") / "model"
    saved = save(folder, params, spec)
    assert sum(leaf.form == "as it stands" for leaf in saved.leaves) == 1
    return folder


@pytest.fixture
def copy(model, tmp_path):
    return shutil.copytree(model, tmp_path / "model")


def sign(folder):
    """Checksums that agree with what the folder holds: a forger can make them too."""
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES[:2]}
    (folder / "SHA256SUMS").write_text("".join(f"{digests[name]}  {name}\n" for name in ("manifest.json", FILES[0])))


def forge(folder, text):
    (folder / "manifest.json").write_text(text if isinstance(text, str) else json.dumps(text))
    sign(folder)


@pytest.mark.parametrize("name", FILES)
def test_every_byte_and_every_length_is_checked(copy, name):
    data, rng = (copy / name).read_bytes(), np.random.default_rng(0)
    for place in rng.choice(len(data), min(60, len(data)), replace=False):
        edited = bytearray(data)
        edited[place] ^= 1 << int(rng.integers(8))
        (copy / name).write_bytes(edited)
        with pytest.raises(ValueError, match=r"model: .*was changed, cut off or damaged"):
            load(copy)
    for length in {0, 1, len(data) // 2, len(data) - 1}:
        (copy / name).write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"model: .*was changed, cut off or damaged"):
            load(copy)
    (copy / name).write_bytes(data + b"\n")
    with pytest.raises(ValueError, match="was changed, cut off or damaged"):
        load(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_a_link_and_a_pipe_are_refused(copy, name):
    data = (copy / name).read_bytes()
    (copy / name).unlink()
    with pytest.raises(ValueError, match=rf"holds no saved parameters: no {name}"):
        load(copy)
    (copy.parent / "elsewhere").write_bytes(data)
    (copy / name).symlink_to(copy.parent / "elsewhere")
    with pytest.raises(ValueError, match="is no regular file"):
        load(copy)
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(ValueError, match="is no regular file"):
        load(copy)


def test_nothing_there_is_said_so(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere holds no saved parameters"):
        load(tmp_path / "nowhere")


def nodes(node):
    """All objects of a manifest."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(child)


ODD = [None, True, -1, 0, 1, 2, 3, 2**31, 2**62, 10**30, "", "x", "RrCc", "support", [], [1], [[1, 1]], {}]
ODD += [{"form": "plain"}]


def test_whatever_a_forged_manifest_says_it_is_refused_or_harmless(copy):
    """Every field of every object in turn takes odd values: no other error, and no more memory than leaves may take."""
    original, rng, refused = (copy / "manifest.json").read_text(), np.random.default_rng(0), 0
    for _ in range(400):
        found = json.loads(original)
        fields = [(one, name) for one in nodes(found) for name in one]
        one, name = fields[rng.integers(len(fields))]
        odd = ODD[rng.integers(len(ODD))]
        if rng.random() < 0.1:
            del one[name]
        elif rng.random() < 0.1:
            one[f"{name}2"] = odd
        else:
            one[name] = odd
        forge(copy, found)
        try:
            load(copy, limit=2**20)
        except ValueError as error:
            refused += "model" in str(error)
    assert refused > 300


def test_whatever_forged_tensors_hold_they_are_refused_or_read(copy):
    data, rng = (copy / FILES[0]).read_bytes(), np.random.default_rng(0)
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for i in range(300):
        edited = bytearray(data)
        for place in rng.integers(0, header if i % 2 else len(data), rng.integers(1, 4)):
            edited[place] = rng.integers(256)
        (copy / FILES[0]).write_bytes(edited[: rng.integers(len(edited))] if i % 10 == 0 else edited)
        sign(copy)
        try:
            load(copy)
        except ValueError as error:
            assert str(copy) in str(error)


VERSION = {"format": "jaxcomp", "version": 1}
VIEW = {"name": "v", "rows": None, "columns": None, "pools": "R", "groups": "C", "elements": "rc", "taps": "columns"}
VIEW |= {"diagonal": False, "layout": None}


def dense(shape, **more):
    return {"shape": shape, "dtype": "float32"} | more


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "the manifest is no JSON"),
        ("[]", r"the manifest is \[\], expected an object"),
        ("\udcff", "the manifest is no UTF-8"),
        ("[" * 100_000, "nested too deep"),
        ('{"format": "jaxcomp", "format": "jaxcomp"}', "the key 'format' 2 times, expected once"),
        (VERSION | {"version": 2, "leaves": {}}, "version 2, this jaxcomp reads 1"),
        (VERSION | {"format": "pickle", "leaves": {}}, "format is 'pickle'"),
        (VERSION, "no field 'leaves'"),
        (VERSION | {"leaves": {}, "run": "rm"}, r"unknown fields \['run'\]"),
        (VERSION | {"leaves": []}, "leaves must be an object"),
        (VERSION | {"leaves": {"../../etc/passwd": dense([1])}}, "name different leaves"),
        (VERSION | {"leaves": {"w": dense([4, -1])}}, "shape is .* none below zero"),
        (VERSION | {"leaves": {"w": dense([4, 1.5])}}, "holds the number '1.5', expected whole numbers"),
        ('{"a": NaN}', "holds the number 'NaN'"),
        (VERSION | {"leaves": {"w": dense([4] * 40)}}, "up to 32 sizes"),
        (VERSION | {"leaves": {"w": dense([2**40])}}, r"take 4,398,046,511,104 bytes of memory, the limit is"),
        (VERSION | {"leaves": {"w": dense([0, 2**40], **{"as": {}})}}, "has no weights, but a form"),
        (VERSION | {"leaves": {"w": dense([4, 4], dtype="object")}}, "dtype is 'object'"),
        (
            VERSION | {"leaves": {"w": dense([4, 5])}},
            r"'w' is F32\[4, 4\] in tensors.safetensors, expected F32\[4, 5\]",
        ),
        (VERSION | {"leaves": {"w": dense([4, 4], **{"as": {"form": "plain"}})}}, r"expected U8\[64\]"),
    ],
)
def test_a_manifest_that_was_not_written_by_save_is_named(text, message, tmp_path):
    save(tmp_path / "model", {"w": jnp.ones((4, 4))})
    data = json.dumps(text) if not isinstance(text, str) else text
    (tmp_path / "model" / "manifest.json").write_bytes(data.encode(errors="surrogateescape"))
    sign(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    "node, message",
    [
        ({"form": "exec"}, "form 'exec' is unknown, expected one of"),
        ({"form": "plain", "code": "x"}, r"unknown fields \['code'\]"),
        ({"form": "shared", "view": VIEW, "of": {"form": "plain"}}, "60 of 64 bytes are left over"),
        ({"form": "listed", "view": VIEW, "values": 17}, "68 bytes are needed at 0 of 64"),
        ({"form": "listed", "view": VIEW, "values": 2**50}, "values is .* expected a whole number from 1 to"),
        ({"form": "signs", "view": VIEW | {"pools": "RR"}, "of": {"form": "plain"}}, "each of RrCc once"),
        ({"form": "signs", "view": VIEW | {"rows": 99}, "of": {"form": "plain"}}, "tile's side must be"),
        (
            {"form": "signs", "view": VIEW | {"rows": 1, "layout": "oiix"}, "of": {"form": "plain"}},
            "layout 'oiix' names 4 axes",
        ),
        ({"form": "factors", "layout": None, "rank": 5}, "rank is 5, expected a whole number from 0 to 4"),
        ({"form": "split", "view": VIEW, "of": []}, "expected a list of 1 or more"),
        ({"form": "part", "origin": 0, "size": 17, "of": {"form": "plain"}}, "size is 17, expected .* from 1 to 16"),
        ({"form": "part", "origin": 1, "size": 16, "of": {"form": "plain"}}, "origin is 1, expected .* from 0 to 0"),
        ({"form": "part", "origin": 0, "size": 15, "of": {"form": "plain"}}, "origin is 0, expected"),
    ],
)
def test_a_form_that_cannot_have_been_written_is_named(node, message, tmp_path):
    x = jnp.zeros((32, 32)).at[0, :15].set(1.0 + jnp.arange(15))
    saved = save(tmp_path / "model", {"w": x}, {"w": jc.Sparse(0.5)})
    assert saved.leaves[0].bytes != 64  # replaced below by 64 bytes
    from safetensors.numpy import save as tensors

    (tmp_path / "model" / FILES[0]).write_bytes(tensors({"w": np.arange(64, dtype=np.uint8)}))
    forge(tmp_path / "model", VERSION | {"leaves": {"w": dense([4, 4], **{"as": node})}})
    with pytest.raises(ValueError, match=rf"leaf 'w': .*{message}"):
        load(tmp_path / "model")


def test_forms_nested_without_end_are_refused(tmp_path):
    node = {"form": "plain"}
    for _ in range(40):
        node = {"form": "signs", "view": VIEW, "of": node}
    save(tmp_path / "model", {"w": jnp.zeros((32, 32)).at[:20].set(1.0)}, {"w": jc.Sparse(0.5)})
    forge(tmp_path / "model", VERSION | {"leaves": {"w": dense([32, 32], **{"as": node})}})
    with pytest.raises(ValueError, match="nested deeper than 24"):
        load(tmp_path / "model")


def test_a_small_file_may_not_name_more_memory_than_the_limit(tmp_path):
    save(tmp_path / "model", {"w": jnp.zeros((512, 512))}, {"w": jc.Sparse(0.5, jc.whole())})
    assert (tmp_path / "model" / FILES[0]).stat().st_size < 200
    assert load(tmp_path / "model")["w"].shape == (512, 512)
    with pytest.raises(ValueError, match=r"take 1,048,576 bytes of memory, the limit is 1,000,000: raise it if you"):
        load(tmp_path / "model", limit=10**6)


@pytest.mark.parametrize(
    "like, message",
    [
        ({"a": np.ones(2, np.float32)}, r"has \['b'\] beside"),
        ({"a": np.ones(2, np.float32), "b": np.ones(2, np.float32), "c": np.ones(2)}, r"lacks leaves \['c'\]"),
        ({"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)}, r"'b' is float32\[2\], the tree has float32\[3\]"),
        ({"a": np.ones(2, np.float32), "b": np.ones(2, np.int32)}, r"'b' is float32\[2\], the tree has int32\[2\]"),
    ],
)
def test_a_tree_that_does_not_fit_is_named_by_its_leaves(like, message, tmp_path):
    save(tmp_path / "model", {"a": jnp.zeros(2), "b": jnp.ones(2)})
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "model", like=like)
