"""Tables read between their rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp.hwmodels._measured import MeasuredTable

BITS, WIDTHS = np.array([1.0, 2.0, 4.0, 8.0]), np.array([16.0, 48.0, 64.0])
SECONDS = np.random.default_rng(0).lognormal(-6, 1, (4, 3))
TABLE = MeasuredTable((BITS, WIDTHS), SECONDS)


def test_every_row_is_met():
    bits, widths = np.meshgrid(BITS, WIDTHS, indexing="ij")
    np.testing.assert_allclose(TABLE(bits, widths), SECONDS, rtol=1e-5)


@given(bits=st.floats(0.5, 16), width=st.floats(8, 128), slope=st.floats(-2, 2), other=st.floats(-2, 2))
def test_a_power_law_is_met_everywhere(bits, width, slope, other):
    law = MeasuredTable((BITS, WIDTHS), 1e-3 * BITS[:, None] ** slope * WIDTHS**other)
    assert float(law(bits, width)) == pytest.approx(1e-3 * bits**slope * width**other, rel=1e-4)


def test_derivatives_are_differences_by_coordinates_and_by_rows():
    with jax.enable_x64(True):
        h = 1e-5
        for at in ((3.0, 20.0), (0.7, 60.0), (9.0, 100.0)):
            found = jax.grad(TABLE, argnums=(0, 1))(*at)
            for i, slope in enumerate(found):
                up, down = (TABLE(*(x + s * (j == i) for j, x in enumerate(at))) for s in (h, -h))
                assert float(slope) == pytest.approx(float(up - down) / (2 * h), rel=1e-6)
        by_row = jax.grad(lambda seconds: MeasuredTable(TABLE.axes, seconds)(1.5, 20.0))(jnp.asarray(SECONDS))
        assert int((by_row != 0).sum()) == 4


def test_jit_and_vmap_agree_with_plain_calls():
    bits = jnp.array([1.5, 3.0, 8.0])
    together = jax.jit(jax.vmap(lambda table, x: table(x, 30.0), (None, 0)))(TABLE, bits)
    np.testing.assert_allclose(together, [TABLE(x, 30.0) for x in bits], rtol=1e-6)


@pytest.mark.parametrize(("table", "at"), [(TABLE, (2.0,)), (MeasuredTable((BITS, BITS), SECONDS), (2.0, 2.0)),
                                           (MeasuredTable((np.ones(1),), np.ones(1)), (1.0,))])  # fmt: skip
def test_a_table_that_does_not_match_its_axes_is_refused(table, at):
    with pytest.raises(ValueError, match="expected shape"):
        table(*at)
