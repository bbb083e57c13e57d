"""Short runs of experiments, whose time is nearly all compilation."""

import jax
import pytest

_FLAG = "jax_disable_most_optimizations"


@pytest.fixture
def compiled_quickly():
    """Programs are compiled without most optimisations, so in about half the time; they compute the same."""
    before = jax.config.read(_FLAG)
    jax.config.update(_FLAG, True)
    yield
    jax.config.update(_FLAG, before)
