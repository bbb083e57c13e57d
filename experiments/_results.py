"""``result.json``: what was run, on what, what came of it, and the command that repeats it."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

import jaxcomp
from experiments import _settings
from experiments._registry import Experiment

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


@dataclass(frozen=True)
class Run:
    """One run of an experiment: everything that decides its result."""

    experiment: Experiment
    config: Any
    data: str | None
    seeds: tuple[int, ...]
    quick: bool

    @property
    def identity(self) -> dict[str, Any]:
        """The run as plain values."""
        return plain(
            {
                "experiment": self.experiment.name,
                "config": dataclasses.asdict(self.config),
                "data": self.data,
                "seeds": self.seeds,
                "quick": self.quick,
            }
        )

    @property
    def hash(self) -> str:
        """Ten hexadecimal digits; equal runs have equal hashes, whatever command they were asked for by."""
        canonical = json.dumps(self.identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:10]

    @property
    def command(self) -> str:
        """The command line that repeats the run."""
        words = ["python", "-m", "experiments", "run", self.experiment.name]
        words += ["--data", self.data] if self.data else []
        words += ["--seeds", str(len(self.seeds))] + ["--quick"] * self.quick
        settings = _settings.changes(self.config, self.experiment.default_config(self.quick))
        return shlex.join(words + ["--set", *settings] * bool(settings))

    def folder(self, results: Path) -> Path:
        """Where its result and plots belong."""
        return results / self.experiment.name / self.hash


def write(run: Run, folder: Path, metrics: Mapping[str, Any], seconds: float) -> Path:
    """Writes ``result.json`` into ``folder`` whole or not at all, and returns its path."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    result = run.identity | {
        "metrics": plain(metrics),
        "seconds": round(seconds, 3),
        "versions": {"python": platform.python_version(), "jaxcomp": jaxcomp.__version__} | versions,
        "platform": {
            "system": platform.system(),
            "machine": platform.machine(),
            "cpu_count": os.cpu_count(),
            "backend": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
        },
        "command": run.command,
    }
    path, temporary = folder / "result.json", folder / f"result.json.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    os.replace(temporary, path)
    return path


def plain(value: Any) -> Any:
    """``value`` as JSON has it: arrays as lists, dataclasses as dictionaries, and NaN and infinities as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and JAX arrays and scalars
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
