"""What an interrupted run has finished, so that it is not done again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments._results import plain


def resumed(folder: Path, name: str) -> dict[str, Any]:
    """Options of `jaxcomp.compress`: a training of this name goes on where it was; a done one is not done again."""
    return {"directory": folder / name.replace(" ", "-"), "resume": True, "keep": 1}


def kept(folder: Path, name: str, make: Callable[..., Any], *arguments: Any) -> Any:
    """What was made of the arguments, as JSON has it: read from the folder if it is there, else made and written."""
    path = folder / f"{name}.json".replace(" ", "-")
    if not path.exists():
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(plain(make(*arguments)), allow_nan=False))
        unfinished.replace(path)
    return json.loads(path.read_text())
