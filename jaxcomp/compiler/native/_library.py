"""The kernels as a library of this machine: built by its C++ compiler at first use, kept, and made known to XLA."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jaxlib

KERNELS = ("jaxcomp_strips", "jaxcomp_coded_strips", "jaxcomp_lists")
_SOURCE = Path(__file__).with_name("kernels.cc")
_COMPILERS = ("c++", "g++", "clang++")
# What is worth vectors is written in vectors: what compilers make of the rest is slower than the rest.
_FLAGS = ("-std=c++17", "-O3", "-fno-tree-vectorize", "-ffp-contract=fast", "-shared", "-fPIC", "-w")
_MACHINES = ("-march=native", "-mcpu=native")  # compilers for some processors know only the second
_PATIENCE_S = 300


@functools.cache
def missing() -> str | None:
    """Why there are no kernels here, or ``None``: asked once, they are built and registered.

    They are kept in ``$JAXCOMP_CACHE``, by default ``jaxcomp`` in the user's cache, under a name that tells their
    source, the compiler, jaxlib and the processor: another machine with the same home builds its own. The compiler is
    ``$CXX`` or the first of c++, g++ and clang++ that is found.
    """
    if jax.default_backend() != "cpu":
        return "they are for CPUs"
    try:
        library = ctypes.CDLL(str(_built()))
    except (_CannotBuild, OSError) as error:
        return str(error)
    for name in KERNELS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return None


class _CannotBuild(Exception):
    """There is no compiler, or it fails."""


def _built() -> Path:
    compiler = shlex.split(os.environ.get("CXX") or next(filter(shutil.which, _COMPILERS), ""))
    if not compiler:
        raise _CannotBuild(f"no C++ compiler is found: none of {', '.join(_COMPILERS)}, nor $CXX")
    made_of = [_SOURCE.read_text(), *compiler, _version(compiler), jaxlib.__version__, str(_FLAGS), _processor()]
    name = f"kernels-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]}.so"
    folder = _folder()
    kept = folder / name
    if not kept.exists():
        handle, beside = tempfile.mkstemp(dir=folder, prefix=name)
        os.close(handle)
        try:
            _build(compiler, beside)
            os.replace(beside, kept)  # others who build the same see all of it or nothing
        finally:
            Path(beside).unlink(missing_ok=True)
    return kept


def _folder() -> Path:
    """Where what was built is kept; if that cannot be written to, a folder for this process alone."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.environ.get("JAXCOMP_CACHE") or Path(cache) / "jaxcomp").expanduser()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        pass
    return folder if os.access(folder, os.W_OK | os.X_OK) else Path(tempfile.mkdtemp(prefix="jaxcomp-"))


def _build(compiler: list[str], target: str) -> None:
    for machine in _MACHINES:
        command = [*compiler, *_FLAGS, machine, "-isystem", jax.ffi.include_dir(), "-o", target, str(_SOURCE)]
        done = _run(command)
        if done.returncode == 0:
            return
    raise _CannotBuild(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")


def _version(compiler: list[str]) -> str:
    return _run([*compiler, "--version"]).stdout


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _CannotBuild(f"{command[0]} cannot be run: {error}") from error


def _processor() -> str:
    """What the instructions that it knows follow from."""
    known = Path("/proc/cpuinfo")
    if known.exists():
        return "".join(sorted({line for line in known.read_text().splitlines() if line.startswith(("flags", "Feat"))}))
    return f"{platform.machine()} {platform.processor()}"
