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


def points(differences: Sequence[float] | np.ndarray) -> str:
    """The mean difference in percentage points, with its sign."""
    return with_error(differences, "+.2f")


def percent(shares: Sequence[float] | np.ndarray, spec: str = ".2f") -> str:
    """The mean of shares, 0 to 1, in percent."""
    return with_error(100 * np.asarray(shares), spec)


def verdict(margins: Sequence[float] | np.ndarray, yes: str = "Holds", no: str = "Does not hold") -> str:
    """Whether a margin is above zero: yes from two standard errors on, undecided from one on.

    Args:
      margins: by how much a claim is met, a seed an entry.
      yes, no: the words.
    """
    mean, error = np.mean(margins), standard_error(margins)
    if error is None:
        return "One seed tells nothing"
    return yes if mean > 2 * error else "Undecided" if mean > error else no
