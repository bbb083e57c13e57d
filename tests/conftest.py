"""Set up JAX, hypothesis and the data folder for every test."""

import gc
import os
import zlib
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX is imported
os.environ["COLUMNS"] = "200"  # tables are printed unwrapped: where a heading breaks depends on the figures under it

import hypothesis
import jax
import pytest

from jaxcomp.compiler.native import _library

jax.config.update("jax_numpy_rank_promotion", "raise")


def _set(option, value):
    """Set an option of JAX for this process and for those that tests start."""
    jax.config.update(option, value)
    os.environ[option.upper()] = str(value)


# Compiled programs outlive the run, so that a second run spends no time on XLA; processes that tests start share them.
# They hold instructions of this processor: another one with the same home keeps its own.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _set("jax_compilation_cache_dir", str(_library._folder() / f"jit-{zlib.crc32(_library._processor().encode()):08x}"))
    _set("jax_persistent_cache_min_compile_time_secs", 0.1)

hypothesis.settings.register_profile("default", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=300)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True, scope="module")
def forgotten_programs():
    """Programs are dropped after each module: some thousands of them take more memory maps than Linux grants."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: $JAXCOMP_DATA, else ../shared/data beside the checkout."""
    named = os.environ.get("JAXCOMP_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}; set JAXCOMP_DATA to one")
    return folder


_WITHOUT = "jax_disable_most_optimizations"


@pytest.hookimpl(wrapper=True)  # around fixtures too, which compile
def pytest_runtest_protocol(item):
    """Slow tests are compiled without most optimisations, in less time, unless they are marked."""
    _set(_WITHOUT, item.get_closest_marker("slow") is not None and item.get_closest_marker("optimised") is None)
    try:
        return (yield)
    finally:
        _set(_WITHOUT, False)


@pytest.fixture
def compiled_quickly():
    """The same for a test that is not slow."""
    _set(_WITHOUT, True)
