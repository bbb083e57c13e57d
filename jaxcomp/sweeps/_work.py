"""Groups of configurations: compiled, and a chunk at a time claimed, prepared, run, saved."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcomp.sweeps._configs import Configs
from jaxcomp.sweeps._groups import Group, Structure, groups
from jaxcomp.sweeps._identity import name_of
from jaxcomp.sweeps._ledger import Ledger
from jaxcomp.sweeps._members import Batched, Call, InTurn, OnDevices, Program, compiled, lowered, traced, widest, within
from jaxcomp.sweeps._progress import SweepProgress

_PATIENCE = 10.0  # seconds: whoever kills a sweep shall not lose much more


@dataclasses.dataclass(frozen=True)
class Begun:
    """A group whose program is being compiled."""

    group: Group
    call: Call
    program: Future[Program]


@dataclasses.dataclass(frozen=True)
class Work:
    """What `jaxcomp.sweep` does for its groups of configurations; the fields are the arguments of that."""

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

    def through(self, members: Sequence[Group]) -> None:
        """Run all that is missing; on a CPU, while one group runs the next is compiled.

        An accelerator's compiler tries kernels on the device, where those of a run would be in its way.
        """
        with ThreadPoolExecutor(max_workers=1) as compiler:
            begun: Iterator[Begun] = (one for group in members if (one := self._begun(group, compiler)))
            if jax.default_backend() == "cpu":
                begun = (one for one, _ in itertools.pairwise(itertools.chain(begun, [None])) if one)
            for one in begun:
                self._finish(one)

    def _begun(self, group: Group, compiler: Executor) -> Begun | None:
        """A group that is traced and given to the compiler; ``None`` if nothing of it is missing."""
        missing = self.ledger.missing(group.indices)
        if not missing:
            return None
        self.bar.show("compiling")
        prepared, _ = self._prepared(missing[0])
        call = Call(self.fn, group.structure, prepared, self.args)
        try:
            way = self._way(call, len(missing))
            lowered(call, way)
        except Exception as error:
            error.add_note(
                f"while sweep traced {name_of(self.fn)} for configuration {missing[0]}, whose numbers it does not know "
                "there: name those that decide shapes, or how often a loop runs, in static="
            )
            raise
        _, out, _ = traced(call)
        if any(jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended) for x in jax.tree.leaves(out)):
            raise ValueError(f"{name_of(self.fn)} returns a random key: return jax.random.key_data of it")
        self.ledger.admit(out)
        return Begun(group, call, compiler.submit(compiled, call, way))

    def _way(self, call: Call, count: int) -> InTurn:
        if self.mode == "map":
            return InTurn()
        if self.mesh is not None:
            return OnDevices(self.mesh.size, mesh=self.mesh)
        return Batched(min(self.chunk, count)) if self.chunk is not None else widest(call, count, self.memory)

    def _finish(self, begun: Begun) -> None:
        """Run all of a group that is missing."""
        group, call, prepared = begun.group, begun.call, begun.call.prepared
        self.bar.show("compiling")
        program = begun.program.result()
        if self.mode == "vmap" and self.chunk is None:
            program = within(self.memory, program, call)
        self.bar.show(self.mode)
        leaves = dict(zip(group.indices, group.members, strict=True))
        missing = self.ledger.missing(group.indices)
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
