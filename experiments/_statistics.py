"""What several seeds say."""

from collections.abc import Sequence

import numpy as np


def standard_error(values: Sequence[float] | np.ndarray) -> float | None:
    """Of the mean; ``None`` of a single value."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def with_error(values: Sequence[float] | np.ndarray, spec: str) -> str:
    """The mean of percentages, ± its standard error if there is one; ``spec`` formats the mean, as ``"+.2f"``."""
    error = standard_error(values)
    return f"{np.mean(values):{spec}}" + ("" if error is None else f" ± {error:{spec.lstrip('+')}}")
