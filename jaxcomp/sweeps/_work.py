"""A group of configurations, a chunk at a time: claimed, prepared, run, saved."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcomp.sweeps._configs import Configs
from jaxcomp.sweeps._groups import Group, Structure, groups
from jaxcomp.sweeps._identity import name_of
from jaxcomp.sweeps._ledger import Ledger
from jaxcomp.sweeps._members import Batched, Call, InTurn, OnDevices, Program, compile_batch, compiled
from jaxcomp.sweeps._progress import SweepProgress

_PATIENCE = 10.0  # seconds: whoever kills a sweep shall not lose much more


@dataclasses.dataclass(frozen=True)
class Work:
    """What `jaxcomp.sweep` does for each group of configurations; its fields are the arguments of that."""

    fn: Callable
    prepare: Callable | None
    configs: Configs
    args: Structure
    arrays: Sequence[jax.Array]
    mode: str
    mesh: Mesh | None
    chunk: int | None
    memory: int
    ledger: Ledger
    bar: SweepProgress

    def through(self, group: Group) -> None:
        """Run all of a group that is missing."""
        missing = self.ledger.missing(group.indices)
        if not missing:
            return
        leaves = dict(zip(group.indices, group.members, strict=True))
        prepared, _ = self._prepared(missing[0])
        program = self._program(Call(self.fn, group.structure, prepared, self.args), missing)
        least, most = self._sizes(program)
        size = least
        while missing:
            taken = self.ledger.claim(missing, size)
            began = time.perf_counter()
            try:
                if taken:
                    results = self._run(program, [(leaves[i], self._prepared(i, prepared)[1]) for i in taken])
                    diverged = [not _finite(result) for result in results]
                    self.ledger.save(taken, results, diverged)
                    self.bar.show(diverged=sum(diverged))
            finally:
                self.ledger.release(taken)
            late = time.perf_counter() - began > _PATIENCE / 2
            size = min(max(size // 2 if late else 2 * size, least), most)
            missing = self.ledger.missing(missing)

    def _prepared(self, i: int, expected: Structure | None = None) -> tuple[Structure, Sequence[Any]]:
        """What the host makes for a configuration: structure and leaves."""
        made = dict(self.prepare(**self.configs[i])) if self.prepare else {}
        shared = sorted(made.keys() & self.configs[i].keys())
        if shared:
            raise ValueError(f"prepare returns {shared}, which the configuration has already: give it another name")
        (group,) = groups([made])
        if expected is not None and group.structure != expected:
            raise ValueError(
                f"prepare returns {_shapes(group.structure)} for configuration {i}, {self.configs[i]}, but "
                f"{_shapes(expected)} for one before: make the shapes equal, or tell the two apart by a static keyword"
            )
        return group.structure, group.members[0]

    def _program(self, call: Call, missing: Sequence[int]) -> Program:
        self.bar.show("compiling")
        try:
            program = self._compiled(call, len(missing))
        except Exception as error:
            error.add_note(
                f"while sweep traced {name_of(self.fn)} for configuration {missing[0]}, whose numbers it does not know "
                "there: name those that decide shapes, or how often a loop runs, in static="
            )
            raise
        if any(jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended) for x in jax.tree.leaves(program.out)):
            raise ValueError(f"{name_of(self.fn)} returns a random key: return jax.random.key_data of it")
        self.ledger.admit(program.out)
        self.bar.show(self.mode)
        return program

    def _compiled(self, call: Call, count: int) -> Program:
        if self.mode == "map":
            return compiled(call, InTurn())
        if self.mesh is not None:
            return compiled(call, OnDevices(self.mesh.size, mesh=self.mesh))
        if self.chunk is not None:
            return compiled(call, Batched(min(self.chunk, count)))
        return compile_batch(call, count, self.memory)

    def _sizes(self, program: Program) -> tuple[int, int]:
        """How many configurations the first chunk has, which is the shortest, and how many the longest may have."""
        if self.mode == "vmap":
            return program.way.width, program.way.width
        if self.chunk is not None:
            return self.chunk, self.chunk
        return program.way.width, max(program.way.width, (self.memory - program.held) // max(1, program.kept))

    def _run(self, program: Program, members: Sequence[tuple]) -> list[Any]:
        parts = [members[k : k + program.way.width] for k in range(0, len(members), program.way.width)]
        running = [program.start(part, self.arrays) for part in parts]
        found: list[Any] = []
        for part, results in zip(parts, running, strict=True):
            found += program.fetch(results, len(part))
            self.bar.show(done=len(part))
        return found


def _finite(result: Any) -> bool:
    return all(np.all(np.isfinite(x)) for x in jax.tree.leaves(result) if jnp.issubdtype(x.dtype, jnp.inexact))


def _shapes(structure: Structure) -> Any:
    """The tree of shapes, for messages."""
    return structure.restored([f"{struct.dtype.name}{list(struct.shape)}" for struct in structure.structs()])
