"""Set up JAX, hypothesis and the data folder for every test."""

import gc
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX is imported
os.environ["COLUMNS"] = "200"  # tables are printed unwrapped: where a heading breaks depends on the figures under it

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# No persistent compilation cache: programs loaded from it beside freshly compiled ones of the same name have computed
# each other's results (jax 0.10.2 on a CPU: one run in a handful).
jax.config.update("jax_enable_compilation_cache", False)

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


@pytest.fixture
def compiled_quickly():
    """Programs are compiled without most optimisations, so in about half the time; they compute the same."""
    flag = "jax_disable_most_optimizations"
    before = jax.config.read(flag)
    jax.config.update(flag, True)
    yield
    jax.config.update(flag, before)
