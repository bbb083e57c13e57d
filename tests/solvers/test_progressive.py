"""Progressive schedules: the curves, what a round's solver is, when the way ends, and what it cannot join."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcomp as jc
from tests.problems import quadratic, quadratic_batches, regression, regression_problem

PARAMS, BATCHES = regression_problem(batches=12)
SGD, ADAM = optax.sgd(0.2), optax.adam(3e-2)


def admm(density, **numbers):
    return jc.ADMM({"w": jc.Sparse(density)}, **({"rho": 0.3} | numbers))


def numbers(solver):
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(solver)}


def square_root(start, end, share):
    return start + (end - start) * jnp.sqrt(share)


WAY = jc.Progressive(admm(1.0, growth=1.0), admm(0.25, growth=1.5), rounds=4)


@pytest.mark.parametrize("curve", ["linear", "geometric", "cubic", square_root])
def test_the_way_begins_at_the_start_and_reaches_the_end_exactly_and_stays(curve):
    start, end = admm(0.9, rho=0.1, growth=1.0), admm(0.07, rho=0.7, growth=1.3)
    way = jc.Progressive(start, end, rounds=7, curve=curve)
    f32 = jax.tree.map(np.float32, (start, end))
    assert numbers(way.at(0)) == numbers(f32[0])
    for t in (7, 8, 1000):
        assert numbers(way.at(t)) == numbers(f32[1])
    densities = [float(way.at(t).spec["w"].density) for t in range(8)]
    assert densities == sorted(densities, reverse=True) and len(set(densities)) == 8
    assert way.spec is end.spec


def test_curves_are_those_of_their_papers():
    def densities(curve):
        way = jc.Progressive(admm(0.8), admm(0.1), rounds=3, curve=curve)
        return [float(way.at(t).spec["w"].density) for t in range(4)]

    t = np.arange(4) / 3
    np.testing.assert_allclose(densities("cubic"), 0.1 + (0.8 - 0.1) * (1 - t) ** 3, rtol=1e-6)
    np.testing.assert_allclose(densities("geometric"), 0.8 * (1 / 8) ** t, rtol=1e-6)
    np.testing.assert_allclose(densities("linear"), 0.8 - 0.7 * t, rtol=1e-6)
    np.testing.assert_allclose(densities(square_root), 0.8 - 0.7 * np.sqrt(t), rtol=1e-6)


@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (2.0, 0.0), (-1.0, 1.0)])
def test_a_geometric_way_between_numbers_that_no_factor_joins_is_straight(start, end):
    way = jc.Progressive(admm(0.5, tolerance=start), admm(0.5, tolerance=end), rounds=4, curve="geometric")
    np.testing.assert_allclose([way.at(t).tolerance for t in range(5)], np.linspace(start, end, 5), atol=1e-6)


@pytest.mark.parametrize("curve", ["linear", "geometric", "cubic"])
def test_numbers_that_are_equal_stay_bit_for_bit(curve):
    way = jc.Progressive(admm(0.9, rho=0.1), admm(0.1, rho=0.1), rounds=7, curve=curve)
    for t in range(9):
        assert way.at(t).rho == np.float32(0.1) and way.at(t).rho_max == np.inf


@pytest.mark.slow
def test_a_round_is_descended_and_coordinated_by_its_solvers():
    """Beside a loop that is given every round's solver: P_t for the steps of round t, P_(t+1) for the coordination."""
    loose, tight, rate, steps = admm(1.0, growth=1.0), admm(0.25, growth=1.6), 0.05, 3
    way = jc.Progressive(loose, tight, rounds=3, curve="linear")
    found = jc.solve(regression, PARAMS, BATCHES, way, optimizer=optax.sgd(rate), rounds=4, steps=steps)

    path = [admm(d, growth=g) for d, g in zip([1, 0.75, 0.5, 0.25, 0.25], [1, 1.2, 1.4, 1.6, 1.6], strict=True)]
    params, state = PARAMS, path[0].init(PARAMS)
    for t in range(4):
        for i in range(t * steps, (t + 1) * steps):
            batch = jax.tree.map(lambda x, i=i: x[i], BATCHES)
            gradient = jax.grad(lambda p, s, t=t, b=batch: path[t].objective(s, regression(p, b), p))(params, state)
            params = jax.tree.map(lambda x, g: x - rate * g, params, gradient)
        state = path[t + 1].coordinate(state, None, params)
    for ours, theirs in zip(*map(jax.tree.leaves, (found.state.inner, state)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.params["w"], tight.land(state, params)["w"], rtol=1e-4, atol=1e-6)
    assert found.state.round == 4
    np.testing.assert_allclose(found.history["share"], [1 / 3, 2 / 3, 1, 1], rtol=1e-6)


@pytest.mark.slow
def test_a_way_without_a_difference_is_the_solver_itself():
    plain, way = admm(0.25, growth=1.2), jc.Progressive(admm(0.25, growth=1.2), admm(0.25, growth=1.2), rounds=2)
    run = dict(optimizer=ADAM, rounds=3, steps=4, retrain=1)
    ours, theirs = (jc.solve(regression, PARAMS, BATCHES, solver, **run) for solver in (way, plain))
    for a, b in zip(
        *map(jax.tree.leaves, ((ours.params, ours.state.inner), (theirs.params, theirs.state))), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_the_copy_of_the_weights_obeys_the_sets_of_its_round():
    kept = []
    state = WAY.init(PARAMS)
    for _ in range(6):
        kept.append(int(jnp.count_nonzero(state.inner.z["w"])))
        state = WAY.coordinate(state, None, PARAMS)
    assert kept == [round(24 * (0.25 + 0.75 * (1 - min(t / 4, 1)) ** 3)) for t in range(6)]


@pytest.mark.slow
def test_bits_go_down_in_whole_numbers_or_in_fractions_as_they_are_given():
    def solver(bits):
        return jc.ADMM({"w": jc.Quantized(jc.Uniform(bits, zero=False))}, rho=0.3)

    def bits(way):
        return [way.at(t).spec["w"].levels.bits for t in range(5)]

    whole = jc.Progressive(solver(8), solver(2), rounds=4, curve="linear")
    assert [int(b) for b in bits(whole)] == [8, 6, 5, 4, 2]  # 6.5 and 3.5 to the even number
    assert {b.dtype for b in bits(whole)} == {jnp.dtype(jnp.int32)}
    fractions = jc.Progressive(solver(8.0), solver(2.0), rounds=4, curve="linear")
    np.testing.assert_allclose(bits(fractions), [8, 6.5, 5, 3.5, 2])

    x = {"w": jax.random.normal(jax.random.key(0), (40, 40))}
    state, coordinate = jax.jit(whole.init)(x), jax.jit(lambda state: whole.coordinate(state, None, x))
    for t in range(6):
        magnitudes = len(np.unique(np.abs(state.inner.z["w"]).round(5)))
        assert magnitudes <= 2 ** (int(whole.at(t).spec["w"].levels.bits) - 1) and (t == 0 or magnitudes > 1)
        state = coordinate(state)
    assert magnitudes == 2


def test_masks_change_at_the_end_of_the_way():
    first, last = np.array([True, True, False]), np.array([True, False, False])
    way = jc.Progressive(*(jc.ADMM({"w": jc.FixedMask(mask)}) for mask in (first, last)), rounds=2)
    for t, expected in ((0, first), (1, first), (2, last), (3, last)):
        np.testing.assert_array_equal(way.at(t).spec["w"].mask, expected)


def test_landing_and_retraining_keep_the_end_though_the_run_stops_on_the_way():
    way = dataclasses.replace(WAY, rounds=100)
    found = jc.compress(regression, PARAMS, BATCHES, way, optimizer=ADAM, rounds=2, steps=2, retrain=2, progress=False)
    assert jnp.count_nonzero(found.landed["w"]) == jnp.count_nonzero(found.params["w"]) == 6
    assert 0 < found.history[1]["share"] < 0.1


def test_a_run_has_not_converged_before_the_end_of_the_way():
    """Every point obeys the first sets: ADMM alone would have said so, and stopped, after a round."""
    loose, tight = (admm(density, tolerance=1e-2, rho=1.0) for density in (1.0, 0.5))
    a = [3.0, 0.1, 2.0, 0.2]
    run = dict(optimizer=SGD, rounds=40, steps=20, early_stop=True)
    start = {"w": jnp.array(a)}
    for solver, ends in ((loose, True), (jc.Progressive(loose, tight, rounds=5, curve="linear"), False)):
        found = jc.solve(quadratic, start, quadratic_batches(a), solver, **run)
        assert found.history["converged"][0] == ends and found.converged
    assert np.argmax(found.history["converged"]) >= 4
    np.testing.assert_allclose(found.params["w"], [3, 0, 2, 0], atol=1e-2)


def test_the_known_optimum_is_reached_by_a_way_to_its_set():
    """Of four weights the two that the loss needs, which are not the two largest."""
    a, h = [1.1, 1.0, 1.0, 0.3], [0.05, 1, 1, 0.1]
    way = jc.Progressive(admm(1.0, rho=0.5), admm(0.5, rho=0.5), rounds=10, curve="linear")
    found = jc.solve(
        quadratic, {"w": jnp.array(a)}, quadratic_batches(a, h), way, optimizer=SGD, rounds=50, steps=20, retrain=5
    )
    np.testing.assert_allclose(found.params["w"], [0, 1, 1, 0], atol=1e-4)


@pytest.mark.slow
def test_a_transformation_takes_the_steps_of_solve():
    reference = jc.solve(regression, PARAMS, BATCHES, WAY, optimizer=ADAM, rounds=4, steps=3)
    tx = optax.chain(jc.as_transformation(WAY, 3), ADAM)

    @jax.jit
    def step(carry, batch):
        params, state = carry
        updates, state = tx.update(jax.grad(regression)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), state[0].solver.inner.z

    (params, (state, *_)), z = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), BATCHES)
    np.testing.assert_allclose(WAY.land(state.solver, params)["w"], reference.params["w"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(params["b"], reference.params["b"], rtol=1e-4, atol=1e-6)
    counts = jnp.count_nonzero(z["w"], axis=(1, 2))
    np.testing.assert_array_equal(counts, np.repeat([24, 14, 8, 6], 3))  # those of round t, all through it


def test_a_solver_that_weighs_losses_or_brings_an_opponent_may_be_led():
    class Weighing(jc.ADMM):
        additive, risks = False, 2

        def opponent(self, state):
            return state.rho * self.growth

    kind = jc.register_dataclass(Weighing)
    loose, tight = (kind({"w": jc.Sparse(0.25)}, growth=growth) for growth in (2.0, 4.0))
    way = jc.Progressive(loose, tight, rounds=1)
    state = way.init(PARAMS)
    assert not way.additive and way.risks == 2
    np.testing.assert_allclose(way.opponent(state), 2e-3)
    np.testing.assert_allclose(way.opponent(way.coordinate(state, None, PARAMS)), 4 * 4e-3)


@pytest.mark.slow
def test_many_ways_run_as_one_program():
    def run(start, rounds):
        way = jc.Progressive(admm(start), admm(0.25), rounds=rounds)
        return jc.solve(regression, PARAMS, BATCHES, way, optimizer=ADAM, rounds=4, steps=2).params

    starts, rounds = jnp.array([1.0, 0.5, 0.25]), jnp.array([4, 2, 1])
    together = jax.vmap(run)(starts, rounds)
    alone = [run(start, count) for start, count in zip(starts, rounds, strict=True)]
    np.testing.assert_allclose(together["w"], jnp.stack([one["w"] for one in alone]), rtol=1e-4, atol=1e-6)
    assert len({one["w"].tobytes() for one in jax.device_get(alone)}) == 3


@pytest.mark.parametrize(
    ("start", "found"),
    [
        (jc.ADMM({"w": jc.Sparse(1.0, jc.outputs())}), "Sparse"),
        (jc.ADMM({"w": jc.Quantized(jc.Uniform(8))}), "Quantized"),
        (jc.ADMM({"b": jc.Sparse(1.0)}), "'b'"),
        (jc.ADMM({}), "(spec|'w')"),  # older jax names the key alone
    ],
    ids=["another view", "another set", "another leaf", "no leaf"],
)
@pytest.mark.parametrize("turned", [False, True])
def test_ends_that_no_path_joins_are_an_error_that_says_where(start, found, turned):
    ends = (start, admm(0.25))[:: -1 if turned else 1]
    way = jc.Progressive(*ends, rounds=3)
    for act in (lambda: way.spec, lambda: way.at(1), lambda: way.init(PARAMS)):
        with pytest.raises(ValueError, match=rf"(?s)start and end must be one solver with other numbers.*{found}"):
            act()
    with pytest.raises(ValueError, match="start and end must be one solver"):
        jc.solve(regression, PARAMS, BATCHES, way, optimizer=ADAM, rounds=1, steps=1)


def test_ends_whose_masks_have_unlike_shapes_are_an_error():
    masks = np.ones(3, bool), np.ones((2, 3), bool)
    with pytest.raises(ValueError, match=r"found shapes \(3,\) and \(2, 3\) at .spec\['w'\].mask"):
        jc.Progressive(*(jc.ADMM({"w": jc.FixedMask(mask)}) for mask in masks), rounds=3).at(0)


def test_an_unknown_curve_is_an_error():
    with pytest.raises(ValueError, match=r"curve must be one of \['linear', 'geometric', 'cubic'\] or .* 'cosine'"):
        jc.solve(
            regression, PARAMS, BATCHES, dataclasses.replace(WAY, curve="cosine"), optimizer=ADAM, rounds=1, steps=1
        )
