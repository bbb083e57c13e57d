"""Kernels are built once, kept, and done without where they cannot be built."""

import jax.numpy as jnp
import pytest

import jaxcomp as jc
from jaxcomp.compiler import native
from jaxcomp.compiler.native import _library


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCOMP_CACHE", str(tmp_path / "of" / "mine"))
    return tmp_path / "of" / "mine"


def built(compiler, target):
    with open(target, "w") as file:
        file.write("a library")


def test_it_is_built_once_and_nothing_else_is_left(cache, monkeypatch):
    monkeypatch.setattr(_library, "_build", built)
    monkeypatch.setattr(_library, "_version", lambda compiler: "1")
    monkeypatch.setenv("CXX", "c++")
    first = _library._built()
    monkeypatch.setattr(_library, "_build", None)
    assert _library._built() == first and list(cache.iterdir()) == [first]


def test_another_compiler_builds_its_own(cache, monkeypatch):
    monkeypatch.setattr(_library, "_build", built)
    monkeypatch.setenv("CXX", "c++")
    found = set()
    for version in "12":
        monkeypatch.setattr(_library, "_version", lambda compiler, version=version: version)
        found.add(_library._built())
    assert len(found) == 2


def test_a_build_that_fails_leaves_nothing_and_says_what_was_tried(cache, monkeypatch):
    monkeypatch.setenv("CXX", "false --with arguments")
    with pytest.raises(_library._CannotBuild, match=r"false --with arguments .* failed"):
        _library._built()
    assert list(cache.iterdir()) == []


def test_a_compiler_that_does_not_run_is_named(cache, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(_library._CannotBuild, match=r"/nowhere/c.. cannot be run"):
        _library._built()


def test_without_a_compiler_models_are_compiled_all_the_same_and_the_report_says_so(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(_library.shutil, "which", lambda name: None)
    monkeypatch.setattr(native, "missing", lambda: _library.missing.__wrapped__())
    params = {"w": jnp.ones((256, 256)).at[::2].set(0)}
    spec = jc.assign(params, {"w": jc.Sparse(0.5, jc.inputs())})
    model = jc.compile(lambda p, x: x @ p["w"], params, spec, jnp.ones((2, 256)), rounds=1)
    assert any("no C++ compiler is found" in note for note in model.report.notes)
    assert "own kernel" not in str(model.report)
    assert float(model(jnp.ones((2, 256)))[0, 0]) == 128


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("JAXCOMP_CACHE", str(file / "below"))
    assert _library._folder().is_dir()
