"""SLR: the rule of its stepsize, the iteration by hand, known optima and multipliers, and what a failed test leaves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcomp as jc
from jaxcomp.constraints import Together
from tests.problems import quadratic, quadratic_batches, regression, regression_problem

SGD, FAST_SGD, ADAM = optax.sgd(0.05), optax.sgd(0.2), optax.adam(3e-2)
NUMBERS = ("rho", "s0", "M", "r", "growth", "rho_max", "tolerance", "compare")


def run(a, constraint, h=1.0, start=None, **options):
    """SLR on the quadratic with minimum ``a`` and curvature ``h``, from its minimum."""
    settings = {"optimizer": FAST_SGD, "rounds": 200, "steps": 20} | options
    numbers = {name: settings.pop(name) for name in NUMBERS if name in settings}
    solver = jc.SLR({"w": constraint}, **({"rho": 0.5, "s0": 0.1, "M": 10.0} | numbers))
    params = {"w": jnp.asarray(a if start is None else start, jnp.float32)}
    return jc.solve(quadratic, params, quadratic_batches(a, h), solver, **settings)


def quiet(loss=0.0):
    """A round of a loss that is the same everywhere."""
    loss = jnp.float32(loss)
    return jc.Round(loss, loss, loss, lambda params: loss)


PARAMS, BATCHES = regression_problem()
BATCH = jax.tree.map(lambda x: x[0], BATCHES)
SPEC = {"w": jc.Sparse(0.5)}

# M, r, the number of the move, and alpha to five digits
ALPHA = [(300, 0.1, 1, 0.99667), (300, 0.1, 2, 0.99682), (300, 0.1, 10, 0.99792), (300, 0.1, 100, 0.99939),
         (200, 0.1, 1, 0.99500), (200, 0.1, 10, 0.99689), (200, 0.1, 100, 0.99909)]  # fmt: skip


@pytest.mark.parametrize(("M", "r", "k", "alpha"), ALPHA)
def test_alpha_is_the_published_factor(M, r, k, alpha):
    """Seen as the ratio of two lengths, in a move along a residual of length 1 after one of length 1."""
    solver = jc.SLR({"w": jc.FixedMask(np.array([False, True]))}, rho=1.0, s0=1.0, M=M, r=r)
    state = dataclasses.replace(solver.init({"w": jnp.array([1.0, 1.0])}), k=jnp.float32(k))
    better = {"w": jnp.array([-1.0, 1.0])}  # as far from the set, and of less loss
    after = solver.coordinate(state, dataclasses.replace(quiet(), loss=lambda p: p["w"][0]), better)
    assert (after.accepted, state.norm, after.norm) == (1, 1, 1)
    np.testing.assert_allclose(after.step, alpha, atol=5e-6)


CONSTRAINTS = {
    "one leaf": {"w": jc.Sparse(0.4)},
    "two leaves": {"v": jc.Sparse(0.5), "w": jc.Polarized(jc.whole())},
    "a group": None,  # of both leaves
}


@pytest.mark.parametrize("case", CONSTRAINTS)
def test_every_move_is_alpha_times_as_long_as_the_one_before(case):
    """``s_k ||g_k|| = alpha_k s_{k-1} ||g_{k-1}||`` along a run, and what moves the multipliers is that long."""
    M, r, s0 = 4.0, 0.3, 0.2
    target = {"v": jnp.array([1.1, 1.0]), "w": jnp.array([1.0, 0.3, -0.7])}
    shifts = np.random.default_rng(0).normal(size=12).astype(np.float32)  # a round of other data: points get worse
    spec = CONSTRAINTS[case] or jc.assign(target, {".*": Together(jc.Sparse(0.4))})
    solver = jc.SLR(spec, rho=0.5, s0=s0, M=M, r=r)

    def loss(params, shift):
        return sum(jnp.sum(jnp.square(params[path] - target[path] - shift)) for path in params)

    @jax.jit
    def step(state, params, shift):
        for _ in range(5):
            gradient = jax.grad(lambda p: solver.objective(state, loss(p, shift), p))(params)
            params = jax.tree.map(lambda x, g: x - 0.3 * g, params, gradient)
        now = jnp.float32(0)
        return solver.coordinate(state, jc.Round(now, now, now, lambda p: loss(p, 0.0)), params), params

    params = jax.tree.map(lambda x: 1.3 * x, target)
    state = solver.init(params)
    length, k, moved = s0 * float(state.norm), 1, []
    for shift in shifts:
        before = state
        state, params = step(state, params, shift)
        moved.append(int(state.accepted))
        lengths = []
        for _ in range(moved[-1]):
            length *= 1 - 1 / (M * k ** (1 - k**-r))
            k += 1
            lengths.append(length)
        np.testing.assert_allclose(state.step * state.norm, length, rtol=1e-4)
        assert state.k == k
        if case != "two leaves":  # whose norms are summed, not those of the whole
            travelled = np.sqrt(sum(np.sum((state.multipliers[p] - before.multipliers[p]) ** 2) for p in before.z))
            assert travelled <= sum(lengths) * 1.0001
            if len(lengths) == 1:
                np.testing.assert_allclose(travelled, lengths[0], rtol=1e-3)
    assert 1 in moved and 2 in moved


def test_norms_are_summed_over_constraints():
    params = {"v": jnp.array([3.0, 4.0]), "w": jnp.array([5.0, 12.0])}
    nothing = np.zeros(2, bool)
    apart = jc.SLR({"v": jc.FixedMask(nothing), "w": jc.FixedMask(nothing)}).init(params)
    together = jc.SLR(jc.assign(params, {".*": Together(jc.Sparse(0.0))})).init(params)
    np.testing.assert_allclose([apart.norm, together.norm], [5 + 13, np.sqrt(25 + 169)], rtol=1e-6)
    np.testing.assert_allclose([apart.primal, together.primal], [np.sqrt(25 + 169)] * 2, rtol=1e-6)


def test_rounds_by_hand():
    """The iteration in numpy, on batches so different that what is better on one is worse on another."""
    rate, steps, rounds, keep = 0.05, 3, 8, 2
    rho, s0, M, r, growth = 0.7, 0.9, 3.0, 0.4, 1.2
    a = np.array([1.0, -2.0, 0.5, 3.0, -0.2]) + np.random.default_rng(1).normal(size=(4, 5))
    h = np.array([1.0, 0.5, 4.0, 0.1, 2.0])
    w = start = np.array([0.9, -0.8, 1.1, 0.7, 0.2])

    def project(x):
        return np.where(np.argsort(np.argsort(-np.abs(x))) < keep, x, 0)

    def lagrangian(w, z, m, batch):
        return 0.5 * h @ (w - a[batch]) ** 2 + m @ (w - z) + rho / 2 * np.sum((w - z) ** 2)

    z, m, s, k, previous = project(w), np.zeros(5), s0, 1, w
    norm, found = np.linalg.norm(w - z), []

    def move(m, s, k, norm, residual):
        length = np.linalg.norm(residual)
        s = (1 - 1 / (M * k ** (1 - k**-r))) * s * norm / length
        return m + s * residual, s, k + 1, length

    for first in range(0, rounds * steps, steps):
        for i in range(steps):
            w = w - rate * (h * (w - a[(first + i) % 4]) + m + rho * (w - z))
        batch = first % 4
        moved, m_before, z_before = 0, m, z
        if k == 1 or lagrangian(w, z, m, batch) < lagrangian(previous, z, m, batch):
            (m, s, k, norm), moved = move(m, s, k, norm, w - z), 1
        z = project(w + m / rho)
        if lagrangian(w, z, m, batch) < lagrangian(w, z_before, m, batch):
            (m, s, k, norm), moved = move(m, s, k, norm, w - z), moved + 1
        previous = w if moved else previous
        dual = np.linalg.norm(m - m_before - rho * (w - z_before))
        found.append((np.linalg.norm(w - z), dual, s, moved))
        rho *= growth

    solver = jc.SLR({"w": jc.Sparse(keep / 5)}, rho=0.7, s0=s0, M=M, r=r, growth=growth)
    batches = {"a": jnp.asarray(a, jnp.float32), "h": jnp.asarray(np.tile(h, (4, 1)), jnp.float32)}
    params = {"w": jnp.asarray(start, jnp.float32)}
    solution = jc.solve(quadratic, params, batches, solver, optimizer=SGD, rounds=rounds, steps=steps)
    history, state = solution.history, solution.state
    np.testing.assert_array_equal(history["accepted"], [moved for *_, moved in found])
    assert {1, 2} <= {moved for *_, moved in found}
    for i, name in enumerate(("primal", "dual", "step")):
        np.testing.assert_allclose(history[name], [each[i] for each in found], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.z["w"], z, rtol=1e-4)
    np.testing.assert_allclose(state.multipliers["w"], m, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.previous["w"], previous, rtol=1e-4)
    np.testing.assert_allclose(state.anchor["w"], z - m / rho, rtol=1e-4)
    np.testing.assert_allclose(solution.params["w"], project(w), rtol=1e-4)  # landing leaves the multipliers out


OI = jc.Layout("oi")
# A set, a minimum a and curvature h such that the projection of a is not best, and the point that is.
OPTIMA = {
    "2 of 4 weights": (jc.Sparse(0.5), [1.1, 1.0, 1.0, 0.3], [0.05, 1, 1, 0.1], [0, 1, 1, 0]),
    "one sign": (jc.Polarized(jc.whole(layout=OI)), [[1.0, 1.0, 1.0, -1.8]], [[1, 1, 1, 0.1]], [[1, 1, 1, 0]]),
    "one value": (jc.Tied(jc.whole()), [1.0, 2.0, 6.0], [1, 2, 0.5], [16 / 7] * 3),
}


@pytest.mark.parametrize("case", OPTIMA)
def test_known_optimum_and_multipliers_are_reached_where_plain_projection_misses_them(case):
    constraint, a, h, best = OPTIMA[case]
    solution = run(a, constraint, h)
    np.testing.assert_allclose(solution.params["w"], best, atol=2e-3)
    gradient = np.asarray(h) * (np.asarray(best) - np.asarray(a))
    np.testing.assert_allclose(solution.state.multipliers["w"], -gradient, atol=2e-3)
    assert solution.history["primal"][-1] < 2e-3 and not solution.history["diverged"].any()
    projected, batch = constraint.project(jnp.asarray(a)), jax.tree.map(lambda leaf: leaf[0], quadratic_batches(a, h))
    assert quadratic(solution.params, batch) < 0.9 * quadratic({"w": projected}, batch)


def rejected(compare="points", dtype=jnp.float32):
    """A solver, its state after moves, and a round that fails both tests: more loss, and z, which is 0, stays."""
    solver = jc.SLR({"w": jc.Sparse(0.0)}, rho=1.0, s0=0.1, compare=compare)
    state = solver.init({"w": jnp.array([0.7, -0.2, 2.0], dtype)})
    state = solver.coordinate(state, quiet(1.0), {"w": jnp.array([0.8, -0.3, 2.0], dtype)})
    worse = jc.Round(*[jnp.float32(9)] * 3, lambda params: 9 * jnp.sum(params["w"].astype(jnp.float32)))
    return solver, state, worse, {"w": jnp.array([0.7, -0.2, 2.1], dtype)}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("compare", ["points", "rounds"])
def test_a_round_that_fails_both_tests_leaves_multipliers_and_stepsize_untouched(compare, dtype):
    solver, state, worse, params = rejected(compare, dtype)
    assert state.accepted > 0 and state.step > 0 and jnp.all(state.multipliers["w"] != 0)
    after = jax.jit(lambda state, params: solver.coordinate(state, worse, params))(state, params)
    assert after.accepted == 0 and after.primal != state.primal
    for name in ("multipliers", "step", "norm", "k", "previous", "anchor"):
        for new, old in zip(*map(jax.tree.leaves, (getattr(after, name), getattr(state, name))), strict=True):
            assert np.asarray(new).tobytes() == np.asarray(old).tobytes(), name


def test_the_first_test_compares_two_points_on_the_same_data():
    """A round of hard data makes no point worse: with the losses of the rounds it does."""
    for compare, moves in (("points", 1), ("rounds", 0)):
        solver, state, worse, _ = rejected(compare)
        hard = dataclasses.replace(worse, loss=lambda params: 9 + jnp.sum(params["w"]))
        better = {"w": state.previous["w"] - 0.01}
        assert solver.coordinate(state, hard, better).accepted == moves


def test_the_losses_of_the_rounds_weigh_in_both_tests():
    """A round of much less loss passes both, though z stays; one of a little more fails both, though z is nearer."""
    mask, params = jc.FixedMask(np.array([True, False])), {"w": jnp.array([1.0, 1.0])}
    for constraint, loss, moves in ((jc.Sparse(0.0), 1.0, 2), (mask, 3.0, 0), (mask, 1.0, 2)):
        solver = jc.SLR({"w": constraint}, rho=1.0, s0=0.1, compare="rounds")
        state = solver.coordinate(solver.init(params), quiet(2.0), params)
        assert state.mean == 2
        moved = {"w": jnp.array([1.5, 1.0])}
        assert solver.coordinate(state, quiet(loss), moved).accepted == moves


def test_a_loss_to_compare_points_with_must_be_given():
    solver = jc.SLR(SPEC)
    state = solver.init(PARAMS)
    silent = dataclasses.replace(quiet(), loss=None)
    with pytest.raises(ValueError, match=r"asks for the loss and was given none: .*value_fn="):
        jax.eval_shape(lambda: solver.coordinate(state, silent, PARAMS))
    jax.eval_shape(lambda: dataclasses.replace(solver, compare="rounds").coordinate(state, silent, PARAMS))
    tx = jc.as_transformation(solver, period=2)
    with pytest.raises(ValueError, match="value_fn="):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=1.0)


def test_another_comparison_is_an_error():
    solver = jc.SLR(SPEC, compare="epochs")
    with pytest.raises(ValueError, match="compare must be 'points' or 'rounds', found 'epochs'"):
        solver.coordinate(solver.init(PARAMS), quiet(), PARAMS)


def test_a_residual_of_zero_moves_nothing_and_the_next_keeps_the_step():
    """From a feasible start, through a round that stays there, to one that leaves the set."""
    solver = jc.SLR({"w": jc.FixedMask(np.array([True, False]))}, rho=1.0, s0=0.3)
    state = solver.init({"w": jnp.array([1.0, 0.0])})
    state = solver.coordinate(state, quiet(), {"w": jnp.array([1.0, 0.0])})
    assert (state.accepted, state.k, state.primal, state.diverged) == (0, 1, 0, False)
    np.testing.assert_allclose(state.step, 0.3)
    after = solver.coordinate(state, quiet(), {"w": jnp.array([1.0, 0.5])})
    assert after.accepted == 1 and after.norm == 0.5
    np.testing.assert_allclose(after.step, 0.3)
    np.testing.assert_allclose(after.multipliers["w"], [0, 0.15], rtol=1e-6)
    again = solver.coordinate(after, quiet(-9.0), {"w": jnp.array([1.0, 0.0])})
    assert (again.accepted, again.norm) == (0, 0.5) and again.multipliers["w"][1] == after.multipliers["w"][1]


@pytest.mark.parametrize("optimizer", [ADAM, SGD], ids=["adam", "sgd"])
@pytest.mark.parametrize("compare", ["points", "rounds"])
@pytest.mark.slow
def test_the_optax_form_takes_the_steps_of_solve(compare, optimizer):
    """Told, where it compares points, of the batch that the round before began with, as `solve` is."""
    solver, period = jc.SLR({"w": jc.Sparse(0.25)}, rho=0.3, s0=0.2, M=5.0, compare=compare), 4
    tx = optax.with_extra_args_support(optax.chain(jc.as_transformation(solver, period), optimizer))

    @jax.jit
    def train(params):
        def step(carry, i):
            params, state = carry
            now, then = (jax.tree.map(lambda x, j=j: x[j % 3], BATCHES) for j in (i, i - period))
            value, gradient = jax.value_and_grad(regression)(params, now)
            updates, state = tx.update(gradient, state, params, value=value, value_fn=lambda p: regression(p, then))
            return (optax.apply_updates(params, updates), state), (params, state[0].solver)

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(period * 6 + 1))[1]

    params, states = train(PARAMS)
    reference = jc.solve(regression, PARAMS, BATCHES, solver, optimizer=optimizer, rounds=6, steps=period)
    last = jax.tree.map(lambda x: x[-1], states)  # after the coordination that the last step begins with
    for ours, theirs in zip(*map(jax.tree.leaves, (last, reference.state)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    landed = solver.land(None, jax.tree.map(lambda x: x[-1], params))
    np.testing.assert_allclose(landed["w"], reference.params["w"], rtol=1e-3, atol=1e-5)
    assert reference.state.k > 3


@pytest.mark.slow
def test_it_maps_over_first_stepsizes():
    def go(s0):
        return run([1.1, 1.0, 1.0, 0.3], jc.Sparse(0.5), s0=s0, rounds=6).history["step"]

    steps = jnp.array([0.05, 0.1, 0.4])
    together = jax.vmap(go)(steps)
    np.testing.assert_allclose(together, [go(s0) for s0 in steps], rtol=1e-4)
    assert len({float(last) for last in together[:, -1]}) == 3


def test_it_starts_from_the_projection_with_no_multipliers_and_keeps_a_copy_of_the_parameters():
    params = {"w": jnp.array([3.0, -1.0, 0.5, -2.0]), "b": jnp.ones(2)}
    state = jc.SLR({"w": jc.Sparse(0.5)}, s0=0.2).init(params)
    np.testing.assert_array_equal(state.z["w"], [3, 0, 0, -2])
    np.testing.assert_array_equal(state.anchor["w"], state.z["w"])
    assert not jnp.any(state.multipliers["w"]) and set(state.previous) == {"w", "b"}
    np.testing.assert_allclose([state.step, state.norm], [0.2, np.sqrt(1.25)], rtol=1e-6)
    step = jax.jit(lambda params, state: (params, state), donate_argnums=(0, 1))
    jax.block_until_ready(step(params, state))  # a buffer that is in both could not be given away twice


@pytest.mark.slow
def test_narrow_weights_keep_their_dtype_and_multipliers_are_wide():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    solver = jc.SLR({"w": jc.Sparse(0.25)}, rho=0.1, s0=0.1)
    solution = jc.solve(regression, params, BATCHES, solver, optimizer=ADAM, rounds=3, steps=2, retrain=1)
    assert {x.dtype for x in jax.tree.leaves((solution.params, solution.state.previous))} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves((solution.state.z, solution.state.multipliers))} == {jnp.dtype("float32")}
    assert jnp.count_nonzero(solution.params["w"]) == 6


def test_rho_grows_to_its_maximum_and_the_multipliers_stay():
    history = run([1.0, 2.0], jc.Sparse(0.5), rho=0.1, growth=2.0, rho_max=0.5, rounds=4, steps=1).history
    np.testing.assert_allclose(history["rho"], [0.2, 0.4, 0.5, 0.5], rtol=1e-6)
    params = {"w": jnp.array([1.0, 0.4])}
    solvers = (jc.SLR(SPEC, rho=1.0, s0=0.1, growth=growth) for growth in (1.0, 3.0))
    state, grown = (solver.coordinate(solver.init(params), quiet(), params) for solver in solvers)
    np.testing.assert_array_equal(grown.multipliers["w"], state.multipliers["w"])
    np.testing.assert_allclose(grown.anchor["w"], grown.z["w"] - grown.multipliers["w"] / 3, rtol=1e-6)


def test_converged_is_both_residuals_below_the_tolerance():
    loose, tight, never = (
        run([1.0, 2.0, 6.0], jc.Tied(jc.whole()), rho=1.0, tolerance=t, rounds=100).history["converged"]
        for t in (5e-2, 5e-3, 0.0)
    )
    assert not never.any() and 1 < np.argmax(loose) < np.argmax(tight) < 99


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_divergence_for_good(bad):
    batches = jax.tree.map(lambda x: jnp.concatenate([x] * 3), quadratic_batches([1.0, 2.0]))
    batches["a"] = batches["a"].at[1].set(bad)
    for compare in ("points", "rounds"):
        solver = jc.SLR({"w": jc.Sparse(0.5)}, compare=compare)
        solution = jc.solve(quadratic, {"w": jnp.array([1.0, 2.0])}, batches, solver, optimizer=SGD, rounds=3, steps=1)
        np.testing.assert_array_equal(solution.history["diverged"], [False, True, True])


@pytest.mark.slow
def test_leaves_outside_the_spec_feel_no_penalty_and_an_empty_spec_is_plain_training():
    solver = jc.SLR({"w": jc.Sparse(0.25)}, rho=10.0)
    pull = jax.grad(lambda p: solver.objective(solver.init(PARAMS), jnp.float32(0), p))(PARAMS)
    assert not jnp.any(pull["b"]) and jnp.any(pull["w"])
    ours, plain = (
        jc.solve(regression, PARAMS, BATCHES, solver, optimizer=ADAM, rounds=2, steps=3).params
        for solver in (jc.SLR({}), jc.ADMM({}))
    )
    assert jax.tree.all(jax.tree.map(jnp.array_equal, ours, plain))
