"""A setting chosen by trials."""

from collections.abc import Callable, Sequence


def best(settings: Sequence[float], score: Callable[[float], float]) -> float:
    """The setting of the highest score, the first among equals; one that stands alone is not tried."""
    return settings[0] if len(settings) == 1 else max(settings, key=score)
