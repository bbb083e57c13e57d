"""Which channels the outputs of a network need: all others can go, whatever they hold.

A channel is read where a sum runs over it. It is needed if there, for some needed output, neither its weight nor the
activation is zero. Zeros are those of the numbers at hand: of weights, as masks, casts and products have made them,
and of activations that are zero whatever the inputs, since what writes them is and ``f(0) = 0`` on the way.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import Literal

from jaxcomp.compiler._known import Known, Place, constant, derived
from jaxcomp.compiler._shrink_masks import Channels, along, beside, mark, places
from jaxcomp.tracing._arithmetic import _ELEMENTWISE, _silencers
from jaxcomp.tracing._atoms import _Atom, _Label, _leaves
from jaxcomp.tracing._labels import _Value
from jaxcomp.tracing._propagate import _Labelled

# What comes of these is zero where their operands are; of some the operands after the first ones only say where.
_MOVED = frozenset(
    "broadcast_in_dim concatenate cummax cummin cumsum dynamic_slice dynamic_update_slice gather pad reduce_max "
    "reduce_min reduce_or reduce_sum reduce_window_max reduce_window_min reduce_window_sum reshape rev "
    "sharding_constraint slice sort split squeeze stack tile transpose".split()
)
_FIRST = {"dynamic_slice": 1, "dynamic_update_slice": 2, "gather": 1, "pad": 1}


class Fact(NamedTuple):
    """What is known of the numbers of an array.

    Attributes:
        value: its labels.
        known: the numbers, where no input has a part in them.
        live: channels that may be other than zero; worked out from the numbers where these are known.
    """

    value: _Value
    known: Known | None
    live: Channels


class _Read(NamedTuple):
    """A sum over some axes of weights: where these count, and the labels of all their axes."""

    support: np.ndarray
    labels: Sequence[_Label]
    summed: Sequence[int]


class Needs:
    """The channels that a program needs of these atoms: `run`, then `solve`."""

    def __init__(self, atoms: Iterable[_Atom]):
        self._needed: Channels = {atom: np.zeros(atom.size, bool) for atom in atoms}
        self._reads: list[_Read] = []

    def fact(self, value: _Value, known: Known | None = None) -> Fact:
        """An array of which the numbers are known, or nothing is."""
        live: Channels = {}
        if known and self._mine(value.labels):
            support = _support(known)
            for axis, label in enumerate(value.labels):
                mark(label, beside(support, axis), live)
        return Fact(value, known, live)

    def run(self, program: _Labelled, args: Sequence[Fact], place: Place = ()) -> list[Fact]:
        """Note what a program reads; returns what is known of its outputs."""
        jaxpr = program.jaxpr
        facts = dict(zip(jaxpr.invars, args, strict=True))
        for var, x in zip(jaxpr.constvars, program.constants, strict=True):
            facts[var] = self.fact(program.known[var], constant(x))

        def fact(var: Any) -> Fact:
            return Fact(program.value(var), constant(var.val), {}) if isinstance(var, Literal) else facts[var]

        for number, eqn in enumerate(jaxpr.eqns):
            ins, outs = [fact(var) for var in eqn.invars], [program.known[var] for var in eqn.outvars]
            if number in program.inner:
                rules = {"scan": self._scan, "while": self._while, "cond": self._cond}
                rule = rules.get(eqn.primitive.name, self._call)
                found = rule(eqn, ins, outs, program.inner[number], (*place, number))
            else:
                found = self._operation(eqn, ins, outs)
            facts.update(zip(eqn.outvars, found, strict=True))
        return [fact(var) for var in jaxpr.outvars]

    def solve(self) -> Channels:
        """The fewest channels such that none that goes is read by one that stays; one at least of every atom."""
        while True:
            before = sum(int(mask.sum()) for mask in self._needed.values())
            for read in reversed(self._reads):
                self._follow(read)
            if before == sum(int(mask.sum()) for mask in self._needed.values()):
                empty = [mask for mask in self._needed.values() if not mask.any()]
                if not empty:
                    return self._needed
                for mask in empty:
                    mask[0] = True  # an axis of length zero is no axis to every operation

    def _follow(self, read: _Read) -> None:
        support, axes = read.support, range(read.support.ndim)
        for axis in axes:
            if axis not in read.summed:
                support = support & along(places(read.labels[axis], self._needed), axis, support.ndim)
        found: Channels = {}
        for axis in read.summed:
            mark(read.labels[axis], beside(support, axis), found)
        for atom in found.keys() & self._needed.keys():
            self._needed[atom] |= found[atom]

    def _mine(self, labels: Iterable[_Label]) -> set[_Atom]:
        return _atoms(labels) & self._needed.keys()

    def _keep(self, atoms: Iterable[_Atom]) -> None:
        for atom in self._needed.keys() & atoms:
            self._needed[atom][:] = True

    def _operation(self, eqn: Any, ins: list[Fact], outs: list[_Value]) -> list[Fact]:
        name = eqn.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            live = [self._product(eqn, ins)]
        else:
            # Where tracing lets an axis end in some other way than in a product, nothing of it goes.
            passed = _atoms(label for out in outs for label in out.labels)
            self._keep(_atoms(label for fact in ins for label in fact.value.labels) - passed)
            live = [self._carried(eqn, ins, out) for out in outs]
        known = [fact.known for fact in ins if fact.known]
        if len(known) == len(ins) and not eqn.effects:
            return [self.fact(out, each) for out, each in zip(outs, derived(eqn, known), strict=True)]
        return [Fact(out, None, _single(out, each)) for out, each in zip(outs, live, strict=True)]

    def _carried(self, eqn: Any, ins: list[Fact], out: _Value) -> Channels:
        """Where the result of an operation may be other than zero, for each atom on its own."""
        groups, name = [], eqn.primitive.name
        if name in _ELEMENTWISE:
            groups = _silencers(eqn, [fact.value.fill for fact in ins])
        elif name in _MOVED and not (name == "pad" and ins[1].value.fill != 0):
            groups = [[*range(_FIRST.get(name, len(ins)))]]
        live: Channels = {}
        for atom in self._mine(out.labels) if groups else ():
            for group in groups:
                heard = [_heard(ins[i], atom, name == "concatenate") for i in group]
                live[atom] = np.any([np.zeros(atom.size, bool), *heard], axis=0) & live.get(atom, True)
        return live

    def _product(self, eqn: Any, ins: list[Fact]) -> Channels:
        """Note what a product reads; returns where it may be other than zero."""
        side, summed, passed = _sides(eqn, ins)
        weights, other = ins[side], ins[1 - side]
        labels = weights.value.labels
        mine = [axis for axis in range(len(labels)) if axis not in summed]
        if weights.known is None:
            self._keep(_atoms(labels[axis] for axis in summed))
            own = {atom: weights.live[atom] for atom in _atoms(labels[i] for i in mine) if atom in weights.live}
        else:
            support, own = _support(weights.known), {}
            for axis in summed:
                support = support & along(places(labels[axis], other.live), axis, support.ndim)
            for axis in mine:
                mark(labels[axis], beside(support, axis), own)
            if self._mine(labels[axis] for axis in summed):
                self._reads.append(_Read(support, labels, summed))
        theirs = {atom: other.live[atom] for atom in passed if atom in other.live}
        return theirs | {atom: mask & theirs.get(atom, mask) for atom, mask in own.items()}

    def _call(self, eqn: Any, ins: list[Fact], outs: list[_Value], inner: list[_Labelled], here: Place) -> list[Fact]:
        return self.run(inner[0], ins, here)

    def _scan(self, eqn: Any, ins: list[Fact], outs: list[_Value], inner: list[_Labelled], here: Place) -> list[Fact]:
        first = eqn.params["num_consts"]
        carried = first + eqn.params["num_carry"]
        (body,) = inner
        slices = [
            Fact(body.known[var], fact.known and fact.known.step(here), fact.live)
            for var, fact in zip(body.jaxpr.invars[carried:], ins[carried:], strict=True)
        ]
        found = self._loop(body, ins[:first], ins[first:carried], slices, here)
        return [Fact(out, None, fact.live) for out, fact in zip(outs, found, strict=True)]

    def _while(self, eqn: Any, ins: list[Fact], outs: list[_Value], inner: list[_Labelled], here: Place) -> list[Fact]:
        test, first = eqn.params["cond_nconsts"], eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]
        condition, body = inner
        carry = self._loop(body, ins[test:first], ins[first:], [], here)
        self.run(condition, [*ins[:test], *carry], here)
        return carry

    def _loop(
        self, body: _Labelled, consts: list[Fact], init: list[Fact], slices: list[Fact], here: Place
    ) -> list[Fact]:
        """What a loop gives: what is zero at first and, if so before a step, after it stays zero."""
        carry = []
        for var, fact in zip(body.jaxpr.invars[len(consts) :], init, strict=False):  # slices follow
            value = body.known[var]
            carry.append(Fact(value, None, {atom: _heard(fact, atom, False) for atom in self._mine(value.labels)}))
        before = len(self._reads)
        while True:
            del self._reads[before:]
            outs = self.run(body, [*consts, *carry, *slices], here)
            joined = [
                Fact(fact.value, None, _either(fact.live, out.live)) for fact, out in zip(carry, outs, strict=False)
            ]
            if all(_same(old.live, new.live) for old, new in zip(carry, joined, strict=True)):
                return carry + outs[len(carry) :]
            carry = joined

    def _cond(self, eqn: Any, ins: list[Fact], outs: list[_Value], inner: list[_Labelled], here: Place) -> list[Fact]:
        live: list[Channels] = []
        for number, branch in enumerate(inner):
            found = [fact.live for fact in self.run(branch, ins[1:], (*here, number))]
            live = [_either(*both) for both in zip(live, found, strict=True)] if number else found
        return [Fact(out, None, each) for out, each in zip(outs, live, strict=True)]


def _sides(eqn: Any, ins: list[Fact]) -> tuple[int, tuple[int, ...], set[_Atom]]:
    """Which operand of a product is weights, which of its axes are summed, and what passes of the other operand."""
    if eqn.primitive.name == "dot_general":
        side = int(ins[0].known is None or ins[1].known is not None)
        summed, labels = eqn.params["dimension_numbers"][0], ins[1 - side].value.labels
        passed = _atoms(label for axis, label in enumerate(labels) if axis not in summed[1 - side])
        return side, tuple(summed[side]), passed
    axis = eqn.params["dimension_numbers"].rhs_spec[1]
    # Groups are the outer digits of the features.
    return 1, (axis,), _atoms(ins[0].value.labels) - _leaves(ins[1].value.labels[axis])


def _support(known: Known) -> np.ndarray:
    """Where numbers are not zero, in any step of the loops that they vary over."""
    return (np.asarray(known.array) != 0).any(tuple(range(len(known.loops))))


def _heard(fact: Fact, atom: _Atom, apart: bool) -> np.ndarray:
    """The channels of an atom at which an operand may be other than zero."""
    full, value = np.ones(atom.size, bool), fact.value
    if value.fill is not None:
        return full & bool(value.fill != 0)
    if atom in _atoms(value.labels):
        return fact.live.get(atom, full)
    return full & (not apart)  # one number for all its channels; of what is laid end to end, none of them


def _single(value: _Value, live: Channels) -> Channels:
    """Without atoms that lie along several axes: zero along one says nothing about the others."""
    return {atom: mask for atom, mask in live.items() if sum(atom in _leaves(label) for label in value.labels) == 1}


def _either(one: Channels, two: Channels) -> Channels:
    return {atom: one[atom] | two[atom] for atom in one.keys() & two.keys()}


def _same(one: Channels, two: Channels) -> bool:
    return one.keys() == two.keys() and all((one[atom] == two[atom]).all() for atom in one)


def _atoms(labels: Iterable[_Label]) -> set[_Atom]:
    return {atom for label in labels for atom in _leaves(label)}
