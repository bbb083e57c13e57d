"""Many runs of one function: few compilations, no finished result lost."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console

from jaxcomp.sweeps._configs import Configs
from jaxcomp.sweeps._groups import constants
from jaxcomp.sweeps._ledger import InMemory, Ledger, OnDisk
from jaxcomp.sweeps._members import compiled
from jaxcomp.sweeps._memory import free_memory
from jaxcomp.sweeps._progress import SweepProgress
from jaxcomp.sweeps._provenance import provenance
from jaxcomp.sweeps._result import Sweep
from jaxcomp.sweeps._store import Store
from jaxcomp.sweeps._work import Work

_MODES = ("map", "vmap", "sharded")
_SHARE = 0.5  # of the memory that is free


def sweep(
    fn: Callable,
    configs: Configs | Iterable[Mapping[str, Any]],
    *args: Any,
    mode: Literal["map", "vmap", "sharded"] | None = None,
    chunk: int | None = None,
    memory: int | None = None,
    mesh: Mesh | None = None,
    store: str | os.PathLike | Store | None = None,
    version: str | None = None,
    static: Iterable[str] = (),
    prepare: Callable[..., Mapping[str, Any]] | None = None,
    progress: bool = True,
    console: Console | None = None,
) -> Sweep:
    """``fn(*args, **config)`` for every configuration, with one compilation for all that differ in numbers alone.

    Numbers and arrays of a configuration are traced, so `fn` must be pure, as for `jax.jit`; whatever else it holds
    (strings, functions, the static fields of solvers and constraints) makes groups, each with a program of its own; on
    a CPU the next group's is compiled while one runs.

    A result that holds NaN or infinity is marked as diverged; the others are bit for bit what they would be without it.

    Args:
        fn: returns a pytree of arrays. Data go through `args`, never through a closure: the compiler would fold them
            into the program as constants.
        configs: from `jaxcomp.grid`, `jaxcomp.zip_`, `jaxcomp.random_search`, or any dicts of keyword arguments.
        args: what all runs are given alike. Arrays among it are arguments of the compiled program, the rest (functions,
            numbers) is part of it.
        mode: ``"map"`` runs one after the other through a program of a single run, which is as fast as anything on a
            CPU. ``"vmap"`` runs a chunk as one batch, for accelerators. ``"sharded"`` runs one on each of several
            devices. By default what suits the backend; ``Sweep.reason`` says why.
        chunk: how many configurations run, and are then stored, together. By default as many as memory admits, but,
            other than in mode ``"vmap"``, no more than take about ten seconds.
        memory: bytes for a chunk; by default half of what is free. What the compiled program says it needs is believed.
        mesh: of devices of this process, for mode ``"sharded"``; by default all of them.
        store: a folder, or a `Store`. What it holds is not computed again, what is found is written there at once, and
            several processes that share it share the work. It refuses another `fn`, `prepare` or other `args`. The
            results are then read from it when they are asked for.
        version: says whether what the store holds is still right, in place of what functions do: without it the
            bytecode of `fn` and `prepare` must not have changed (of what they call nothing is known).
        static: keywords whose numbers decide shapes or lengths of loops, as ``rounds`` of `jaxcomp.solve`.
        prepare: ``prepare(**config)`` runs on the host, for the configurations of a chunk at a time, and returns
            further keyword arguments for `fn`: initial weights, the order of batches. They are made of arrays and
            have the same shapes throughout a group.
        progress: draw a progress bar (on standard error, or `console`).

    Raises:
        ValueError: a mode, chunk or static name that is none, a configuration that is no dict of keyword arguments, a
            store of another sweep, results that it cannot hold. What `fn` raises while it is traced passes through.

    >>> import jax.numpy as jnp
    >>> import jaxcomp as jc
    >>> def fn(x, a, power):
    ...     return {"loss": jnp.sum(jnp.abs(x - a) ** power)}
    >>> found = sweep(fn, jc.grid(a=[0.0, 1.0, 4.0], power=[1, 2]), jnp.arange(3.0), static=["power"], progress=False)
    >>> [float(result["loss"]) for result in found.results], found.compilations
    ([3.0, 5.0, 2.0, 2.0, 9.0, 29.0], 2)
    """
    _check(mode, chunk, memory)
    began = time.perf_counter()
    configs = configs if isinstance(configs, Configs) else Configs(configs)
    members = configs.groups(static)
    chosen, mesh, reason = _chosen(mode, mesh)
    args_structure, arrays = constants(args)
    arrays = jax.device_put(arrays, None if mesh is None else NamedSharding(mesh, PartitionSpec()))
    memory = memory or int(_SHARE * free_memory(jax.local_devices()[0]))
    compilations = -compiled.cache_info().misses
    with contextlib.ExitStack() as stack:
        ledger: Ledger = InMemory(len(configs))
        if store is not None:
            opened = store if isinstance(store, Store) else stack.enter_context(Store(store))
            opened.belong(provenance(fn, prepare, version, args))
            ledger = OnDisk(opened, configs)
        found = len(configs) - len(ledger.missing(range(len(configs))))
        bar = stack.enter_context(SweepProgress(chosen, len(configs), found, enabled=progress, console=console))
        work = Work(fn, prepare, configs, args_structure, arrays, chosen, mesh, chunk, memory, ledger, bar)
        work.through(members)
    return Sweep(
        configs=configs,
        results=ledger.results(),
        diverged=ledger.diverged(),
        seconds=time.perf_counter() - began,
        mode=chosen,
        reason=reason,
        compilations=compilations + compiled.cache_info().misses,
    )


def _check(mode: Any, chunk: Any, memory: Any) -> None:
    if mode not in (None, *_MODES):
        raise ValueError(f"mode must be one of {_MODES}, or None for the one that suits the backend; found {mode!r}")
    for name, found in (("chunk", chunk), ("memory", memory)):
        if found is not None and (not isinstance(found, int) or isinstance(found, bool) or found < 1):
            raise ValueError(f"{name} must be a whole number, at least 1, or None; found {found!r}")


def _chosen(mode: str | None, mesh: Mesh | None) -> tuple[str, Mesh | None, str]:
    """The mode, the mesh if it needs one, and why."""
    devices = jax.local_devices()
    if mesh is not None and mode not in (None, "sharded"):
        raise ValueError(f"a mesh is for mode 'sharded', found {mode!r}")
    if mesh is not None and {device.process_index for device in mesh.devices.flat} != {jax.process_index()}:
        raise ValueError(
            "the mesh has devices of other processes: give each process a mesh of its own, or none, and let them share "
            "the work through one store"
        )
    reason = "as asked"
    if mode is None and (mesh is not None or len(devices) > 1):
        mode, reason = "sharded", "there are several devices, and each takes members of its own"
    elif mode is None and devices[0].platform == "cpu":
        mode, reason = "map", "batching members gains nothing on a CPU"
    elif mode is None:
        mode, reason = "vmap", f"a member alone does not fill a {devices[0].platform}"
    if mode == "sharded" and mesh is None:
        mesh = Mesh(np.array(devices), ("members",))
    return mode, mesh, reason
