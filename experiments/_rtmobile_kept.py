"""Results that an interrupted run has finished: kept beside its plots, read and not made again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def kept(folder: Path, name: str, make: Callable[..., Any], *arguments: Any) -> Any:
    """What ``make(*arguments)`` gave, as JSON has it; ``name`` must tell it from all others of the run."""
    path = folder / f"{name}.json".replace(" ", "-")
    if not path.exists():
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(make(*arguments)))
        unfinished.replace(path)
    return json.loads(path.read_text())
