"""What the workers of data-parallel training tell each other: gradients put into any set, and what they left unsaid."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jaxcomp._assign import Spec, check_leaf, footprint, gather, members, project
from jaxcomp._paths import leaves_by_path, replace, select


class ExchangeState(NamedTuple):
    """State of `exchange`, one a worker: arrays keyed by leaf path, float32, and scalars."""

    velocity: dict[str, jax.Array]  # momentum of every leaf
    residual: dict[str, jax.Array]  # what constrained leaves have not sent yet
    taken: jax.Array  # steps so far, shape=(), dtype=int32
    bits: jax.Array  # of the last message, as `message_bits` counts them


def exchange(
    spec: Spec | Callable[[jax.Array], Spec],
    *,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    mask_below: ArrayLike = 0.05,
    clip: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
    axis_name: Any = None,
) -> optax.GradientTransformation:
    """Gradients of several workers, each sent as a member of a set, averaged; what was not sent stays for later.

    Every worker has a velocity u and a residual v of its own, both zero at first. Of its gradient g it makes::

        u <- momentum u + g                  g cut to the norm `clip` / sqrt(N) first
        v <- v + u
        message = project(v)                 rounded to `dtype`
        v <- v - message                     error feedback
        u <- 0 where the message is not 0    in leaves of which less than `mask_below` was sent

    and all get the mean of the N messages, whichever worker sent what. A leaf without a constraint sends u whole.
    The update is this mean: follow it by a learning rate, and by no momentum, which it has already. Weight decay goes
    after it too, lest it be held back with the gradient.

    With ``Sparse`` this is deep gradient compression; with ``momentum=0`` gradient dropping, for a momentum of the
    server's own; with ``Quantized(Binary())`` sign descent with error feedback; ``LowRank`` and a ``Chain`` will do as
    well. The sets should be cones, as these are: a projection on a cone takes its share of however large a residual,
    one on a ball does not.

    A velocity that has waited for long is stale when at last it is sent, hence the last line. But where most entries
    are sent in every step it would leave no momentum at all, and steps as short as those of plain descent; the
    published code masks even so, early in its warm-up. Here that line holds for leaves of which a worker has just sent
    little. ``mask_below=0`` never masks, and any number above 1 always.

    Args:
        spec: ``{path: Constraint}`` from `jaxcomp.assign`, or a function from the number of steps taken to one, always
            of the same leaves: densities may change on the way without compiling anew, for a warm-up.
        momentum: of the velocity, 0 to 1.
        nesterov: look ahead: ``u <- momentum (u + g)``, and ``v <- v + u + g``.
        mask_below: share of a leaf's entries.
        clip: largest norm of a gradient, all leaves together (the published code cuts leaf by leaf), if one worker had
            made it; each of N is cut at ``clip / sqrt(N)``, before it adds to the velocity.
        dtype: of the values of constrained leaves in a message; by default that of the gradient. Rounding stays in
            the residual.
        axis_name: of the workers, under `jax.vmap`, `jax.pmap` or `jax.shard_map`; there is one worker without it.

    Each worker has a state of its own, as below. All numbers may be traced. Messages are computed, and counted in
    ``state.bits``, but not packed: what `jax.lax.pmean` moves is dense. What comes back is no smaller for it: the mean
    of sparse messages has the non-zeros of them all. `Sparse` keeps exactly k entries, also among ties; the published
    code takes a threshold from a sample, and at least one entry of every leaf.

    Raises:
        ValueError: at `init`: a constraint that cannot apply to its leaf, or that would at first keep nothing of it (a
            thousandth of 400 entries); a spec that does not fit the tree.

    Two workers, of which each may send one number:

    >>> import jaxcomp as jc
    >>> params = {"w": jnp.zeros(3)}
    >>> tx = jc.exchange({"w": jc.Sparse(1 / 3)}, axis_name="workers")
    >>> states = jax.vmap(lambda _: tx.init(params))(jnp.arange(2))
    >>> gradients = {"w": jnp.array([[4.0, 0.0, 3.0], [0.0, 2.0, 1.0]])}
    >>> mean, states = jax.vmap(tx.update, axis_name="workers", out_axes=(None, 0))(gradients, states)
    >>> mean["w"].tolist(), states.residual["w"].tolist()
    ([2.0, 1.0, 0.0], [[0.0, 0.0, 3.0], [0.0, 0.0, 1.0]])

    A warm-up, from a quarter of the entries to a thousandth:

    >>> density = optax.exponential_decay(0.25, 1000, 0.25, staircase=True, end_value=0.001)
    >>> tx = optax.chain(jc.exchange(lambda taken: {"w": jc.Sparse(density(taken))}), optax.sgd(0.1))

    References: Lin et al., Deep Gradient Compression, ICLR 2018; Aji and Heafield, Sparse Communication for
    Distributed Gradient Descent, 2017 (gradient dropping); Karimireddy et al., Error Feedback Fixes SignSGD, 2019.
    """
    at = spec if callable(spec) else lambda taken: spec

    def init(params):
        start = jnp.zeros((), jnp.int32)
        leaves = _floating(params)
        if not leaves:  # a placeholder of optax.tree.map_params: one leaf says that none of this is a parameter
            return ExchangeState(jnp.float32(0), jnp.float32(0), start, jnp.float32(0))
        sets = at(start)
        for key, x in gather(sets, leaves).items():
            check_leaf(key, sets[key], x)
        _check_heard(sets, leaves)
        zeros = {path: jnp.zeros(x.shape, jnp.float32) for path, x in leaves.items()}
        return ExchangeState(zeros, select(zeros, members(sets)), start, jnp.float32(0))

    def update(updates, state, params=None):
        del params
        sets, leaves = at(state.taken), _floating(updates)
        gradient = {path: g.astype(jnp.float32) for path, g in leaves.items()}
        if clip is not None:
            gradient = _cut(gradient, clip / jnp.sqrt(1.0 if axis_name is None else lax.psum(1.0, axis_name)))
        velocity, push = {}, {}
        for path, g in gradient.items():
            u = state.velocity[path]
            velocity[path] = momentum * (u + g) if nesterov else momentum * u + g
            push[path] = velocity[path] + g if nesterov else velocity[path]
        waiting = {path: v + push[path] for path, v in state.residual.items()}
        message = project(sets, push | waiting)
        message = {
            path: x.astype(dtype if dtype is not None and path in waiting else leaves[path].dtype)
            for path, x in message.items()
        }
        sent = {path: x.astype(jnp.float32) for path, x in message.items()}
        residual = {path: v - sent[path] for path, v in waiting.items()}
        velocity |= {path: _masked(velocity[path], sent[path], mask_below) for path in residual}
        mean = sent if axis_name is None else lax.pmean(sent, axis_name)
        state = ExchangeState(velocity, residual, state.taken + 1, message_bits(sets, message))
        return replace(updates, {path: x.astype(leaves[path].dtype) for path, x in mean.items()}), state

    return optax.GradientTransformation(init, update)


def message_bits(spec: Spec, message: Any) -> jax.Array:
    """Bits that a message takes: values, indices and scales as its sets store them, other leaves whole.

    An index is an address or a bit of a map, whichever is the less. The compression ratio of a message is the bits of
    the dense gradient over these.

    >>> import jaxcomp as jc
    >>> gradient = {"w": jnp.arange(64.0), "b": jnp.ones(2)}
    >>> spec = {"w": jc.Sparse(density=1 / 32)}
    >>> float(message_bits(spec, jc.project(spec, gradient)))  # 2 values of 32 bits, 2 addresses of 6; 2 values
    140.0
    """
    return sum((stored.bits for stored in footprint(spec, message).values()), jnp.float32(0))


def _floating(tree: Any) -> dict[str, jax.Array]:
    """Leaves that have a gradient; counters and the like pass unchanged."""
    return {path: x for path, x in leaves_by_path(tree).items() if jnp.issubdtype(x.dtype, jnp.floating)}


def _check_heard(sets: Spec, leaves: dict[str, jax.Array]) -> None:
    """Raise if nothing of a leaf would ever be sent, as far as values are known: it would silently stay as it is."""
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((sets, leaves))):
        return
    message = project(sets, leaves)
    if any(isinstance(x, jax.core.Tracer) for x in message.values()):  # while tracing, known values give unknown ones
        return
    message = gather(sets, message)
    for key, x in gather(sets, leaves).items():
        given, sent = (any(np.any(leaf) for leaf in jax.tree.leaves(tree)) for tree in (x, message[key]))
        if given and not sent:
            raise ValueError(
                f"leaf '{key}': {sets[key]} keeps nothing of shape {jax.tree.map(jnp.shape, x)}, so that nothing would "
                "be sent: let it keep at least one entry, or leave the leaf out"
            )


def _cut(gradient: dict[str, jax.Array], most: ArrayLike) -> dict[str, jax.Array]:
    """The gradient, scaled down to a norm of at most this."""
    norm = jnp.sqrt(sum((jnp.sum(jnp.square(g)) for g in gradient.values()), jnp.float32(0)))
    scale = jnp.where(norm > most, most / norm, 1.0)
    return {path: g * scale for path, g in gradient.items()}


def _masked(velocity: jax.Array, sent: jax.Array, below: ArrayLike) -> jax.Array:
    """Zero where something was sent, if that is a small enough share."""
    there = sent != 0
    return jnp.where(there & (jnp.mean(there, dtype=jnp.float32) < below), 0, velocity)
