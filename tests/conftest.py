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

# Compiled programs outlive the run, so that a second run spends no time on XLA; processes that tests start share them.
# They hold instructions of this processor: another one with the same home keeps its own.
_cache = str(_library._folder() / f"jit-{zlib.crc32(_library._processor().encode()):08x}")
jax.config.update("jax_compilation_cache_dir", os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
jax.config.update(
    "jax_persistent_cache_min_compile_time_secs", float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
)

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


@pytest.hookimpl(tryfirst=True)  # before fixtures that compile
def pytest_runtest_setup(item):
    """Slow tests are compiled without most optimisations, in less time, unless they are marked."""
    _compile_quickly(item.get_closest_marker("slow") is not None and item.get_closest_marker("optimised") is None)


@pytest.fixture
def compiled_quickly():
    """The same for a test that is not slow."""
    _compile_quickly(True)


def _compile_quickly(quickly):
    jax.config.update("jax_disable_most_optimizations", quickly)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(quickly)  # of processes that the test starts
