"""The compiled program that runs members of a group: one after the other, a batch, or one on every device."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcomp.sweeps._groups import Structure, stack


@dataclasses.dataclass(frozen=True)
class Call:
    """A function of a configuration as one of a member, which is all its arrays, and of the arrays members share.

    Attributes:
        fn: the function.
        config: its keyword arguments.
        prepared: its further keyword arguments, which the host has made.
        args: its positional arguments, the same for all members.
    """

    fn: Callable
    config: Structure
    prepared: Structure
    args: Structure

    def __call__(self, member: tuple[Sequence, Sequence], shared: Sequence) -> Any:
        leaves, prepared = member
        keywords = self.config.restored(leaves) | self.prepared.restored(prepared)
        return self.fn(*self.args.restored(shared), **keywords)


@dataclasses.dataclass(frozen=True)
class InTurn:
    """One member a call."""

    width: int = 1

    def mapped(self, one: Callable) -> Callable:
        return one

    def structs(self, member: Any, shared: Any) -> tuple[Any, Any]:
        """Shapes of what the mapped function takes."""
        return member, shared

    def joined(self, members: Sequence[Any]) -> Any:
        """What it takes for at most `width` members."""
        return members[0]

    def parted(self, results: Any, count: int) -> list[Any]:
        """What it returns, a member an entry."""
        return [results]


@dataclasses.dataclass(frozen=True)
class Batched(InTurn):
    """`width` members a call, as one batch."""

    def mapped(self, one):
        return jax.vmap(one, in_axes=(0, None))

    def structs(self, member, shared):
        return jax.tree.map(lambda x: _like(x, (self.width, *x.shape)), member), shared

    def joined(self, members):
        return stack([*members, *members[:1] * (self.width - len(members))])

    def parted(self, results, count):
        return [jax.tree.map(lambda leaf, i=i: leaf[i, ...], results) for i in range(count)]


@dataclasses.dataclass(frozen=True)
class OnDevices(Batched):
    """A member on every device of a mesh; a device that is done with its own goes on to its next."""

    mesh: Mesh = dataclasses.field(kw_only=True)

    def mapped(self, one):
        def here(member, shared):
            result = one(jax.tree.map(lambda x: x[0], member), shared)
            return jax.tree.map(lambda x: x[None], result)

        rows = PartitionSpec(self.mesh.axis_names)
        return jax.shard_map(here, mesh=self.mesh, in_specs=(rows, PartitionSpec()), out_specs=rows, check_vma=False)

    def structs(self, member, shared):
        rows = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return (
            jax.tree.map(lambda x: _like(x, (self.width, *x.shape), rows), member),
            jax.tree.map(lambda x: _like(x, x.shape, everywhere), shared),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A compiled program.

    Attributes:
        way: how it runs members.
        out: shapes and dtypes of a member's result.
        held: bytes that a call needs while it runs, with the arrays all members share, as far as is known.
        kept: bytes of a member's arrays and result, which stay until they are fetched.
    """

    compiled: Callable
    way: InTurn
    out: Any
    held: int
    kept: int

    def start(self, members: Sequence[Any], shared: Sequence) -> Any:
        """Run at most ``way.width`` members; what is returned is not awaited."""
        return self.compiled(self.way.joined(members), shared)

    def fetch(self, results: Any, count: int) -> list[Any]:
        """The results of so many members, on the host."""
        return self.way.parted(jax.tree.map(np.asarray, jax.device_get(results)), count)


def widest(call: Call, most: int, memory: int) -> Batched:
    """Up to ``most`` members whose arrays and results take ``memory`` bytes. What more they need the compiler knows."""
    _, _, kept = traced(call)
    return Batched(int(np.clip(memory // max(1, kept), 1, most)))


def within(memory: int, program: Program, call: Call) -> Program:
    """The program, or one for a narrower batch if it needs more bytes."""
    if program.held <= memory or program.way.width == 1:
        return program
    return compiled(call, Batched(max(1, program.way.width * memory // program.held)))


@functools.lru_cache(maxsize=32)
def compiled(call: Call, way: InTurn) -> Program:
    """The program for a call; one that an earlier sweep has compiled is found again."""
    _, out, kept = traced(call)
    program = lowered(call, way).compile()
    used = program.memory_analysis()
    held = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes if used else 0
    return Program(program, way, out, max(held, way.width * kept), kept)


@functools.lru_cache(maxsize=32)
def lowered(call: Call, way: InTurn) -> jax.stages.Lowered:
    """What the compiler is given; once it is there, another thread, which has not this one's settings, may compile."""
    one, _, _ = traced(call)
    return jax.jit(way.mapped(one)).lower(*way.structs(*_structs(call)))


@functools.lru_cache(maxsize=32)
def traced(call: Call) -> tuple[Callable, Any, int]:
    """The call, jitted so that it is traced once however it is mapped; its result; the bytes of both ends of it."""
    # Inlined: XLA would keep a call within the program apart for a while, and end with a longer program.
    one = jax.jit(lambda member, shared: call(member, shared), inline=True)
    member, shared = _structs(call)
    out = jax.eval_shape(one, member, shared)
    return one, out, sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((member, out)))


def _structs(call: Call) -> tuple[Any, Any]:
    return (call.config.structs(), call.prepared.structs()), call.args.structs()


def _like(x: jax.ShapeDtypeStruct, shape: tuple[int, ...], sharding: Any = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding, weak_type=x.weak_type)
