"""Choices of bits and densities against brute force, the dynamic programme and bounds; budgets that cannot be met."""

import csv
import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import jaxcomp as jc
from jaxcomp._workload import Product, Tensor, Workload
from jaxcomp.hwmodels import Device, Exact, Stored, _knapsack
from jaxcomp.hwmodels._allocate import METHODS, allocate
from jaxcomp.hwmodels._bit_serial import BitSerial
from jaxcomp.hwmodels._choices import choices
from jaxcomp.hwmodels._row_stationary import RowStationary
from jaxcomp.hwmodels._systolic import Systolic

REFERENCE = Path(__file__).resolve().parents[2] / ".." / "shared" / "reference"
LAYERS = Workload(
    (
        Product("conv", "conv", 4, 1, 16, 40, 3, 3, 12, 12, 12, 12),
        Product("alone", "alone", 4, 40, 40, 40, 3, 3, 12, 12, 12, 12),
        Product("point", "point", 4, 1, 40, 96, 1, 1, 12, 12, 12, 12),
        Product("dense", "dense", 4, 1, 96, 10),
    ),
    (Tensor("x", 4 * 16 * 144, -1, 0), Tensor("y", 4 * 40 * 144, 0, 1), Tensor("z", 4 * 96 * 144, 2, 3)),
)
BITS = choices(weight_bits=(2, 4, 8), activation_bits=(4, 8))
SCALES = np.array([[1.0, 2.0], [0.2, 3.0], [4.0, 0.5], [0.7, 0.1]])


def noise(stored):
    """A loss that falls with either number of bits, at a layer's own scales."""
    shape = (len(SCALES),)
    weights, activations = (jnp.broadcast_to(x, shape) for x in (stored.weight_bits, stored.activation_bits))
    return SCALES[:, 0] * 4.0**-weights + SCALES[:, 1] * 4.0**-activations


def brute_force(workload, device, table, budget, values, cost):
    """The least loss over all choices whose cost keeps the budget, each found by ``device.cost``."""
    picks = np.array(list(itertools.product(range(table.shape[1]), repeat=len(workload))))
    stored = Stored(**{name: jnp.asarray(x)[picks] for name, x in values.items()})
    spent = jax.vmap(lambda stored: getattr(device.cost(workload, stored), cost))(
        jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x), picks.shape), stored)
    )
    losses = np.asarray(table)[np.arange(len(workload)), picks].sum(axis=1)
    return losses[np.asarray(spent) <= budget * (1 + 1e-6)].min(initial=np.inf)


def table_of(loss, values):
    shape = (len(SCALES),)
    count = len(next(iter(values.values())))
    columns = [loss(Stored(**{name: jnp.full(shape, x[k]) for name, x in values.items()})) for k in range(count)]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
@pytest.mark.parametrize(
    ("device", "cost"),
    [
        pytest.param(BitSerial(), "latency_s", id="bit-serial latency"),
        pytest.param(Systolic(), "weight_bytes", id="systolic storage", marks=pytest.mark.slow),
        pytest.param(RowStationary(bandwidth=1e7), "energy_j", id="eyeriss energy", marks=pytest.mark.slow),
    ],
)
def test_the_programme_finds_the_least_loss(device, cost, share):
    least, most = (
        float(getattr(device.cost(LAYERS, Stored(weight_bits=w, activation_bits=a)), cost)) for w, a in ((2, 4), (8, 8))
    )
    budget = least + share * (most - least)
    found = allocate(LAYERS, device, noise, budget, BITS, cost=cost)
    expected = brute_force(LAYERS, device, table_of(noise, BITS), budget, BITS, cost)
    assert float(found.loss) == pytest.approx(expected, rel=1e-5)
    assert float(found.spent) <= budget * (1 + 1e-6)
    assert float(found.bound) <= expected * (1 + 1e-5)
    assert float(found.spent) == float(getattr(device.cost(LAYERS, found.stored), cost))


SMALL = st.lists(st.lists(st.integers(0, 25), min_size=3, max_size=3), min_size=4, max_size=4)
PICKS = np.array(list(itertools.product(range(3), repeat=4)))
PROGRAMME = jax.jit(_knapsack.by_programme, static_argnums=3)
PRICE = jax.jit(_knapsack.by_price)


@given(losses=SMALL, costs=SMALL)
def test_bounds_are_below_the_least_loss_and_costs_within_the_budget(losses, costs):
    losses, costs, budget = np.float32(losses), np.float32(costs), 50
    assume(costs.min(1).sum() <= budget)
    rows = np.arange(4)
    best = losses[rows, PICKS].sum(1)[costs[rows, PICKS].sum(1) <= budget].min()
    exact, below = PROGRAMME(losses, costs, jnp.float32(budget), budget)
    priced, dual = PRICE(losses, costs, jnp.float32(budget))
    assert losses[rows, exact].sum() == best and costs[rows, exact].sum() <= budget
    assert below <= best and dual <= best * (1 + 1e-4) + 1e-4
    assert costs[rows, priced].sum() <= budget


@pytest.fixture(scope="module")
def mobilenet():
    """The layers of the published BISMO table, a name of its own for each."""
    path = REFERENCE / "haq_bismo_cloud_latency_mobilenetv2.csv"
    if not path.exists():
        pytest.skip(f"no published table at {path}")
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["w_bits"], row["a_bits"]) == ("8", "8")]
    products = []
    for row in rows:
        n = {name: int(row[name]) for name in ("batch", "cin", "cout", "kernel", "h_in", "h_out", "stride")}
        sides = (n["kernel"], n["kernel"], n["h_in"], n["h_in"], n["h_out"], n["h_out"], n["stride"])
        groups = n["cin"] if row["kind"] == "dw" else 1
        products.append(Product(row["layer"], row["layer"], n["batch"], groups, n["cin"], n["cout"], *sides))
    return Workload(tuple(products))


@pytest.mark.slow
def test_gradients_and_prices_come_within_one_percent_of_the_programme(mobilenet):
    # Bits 2 to 8 for 53 layers at 0.6 of the time of 8 bits; scales over four orders of magnitude.
    scales = jnp.asarray(10 ** np.random.default_rng(0).uniform(-2, 2, (2, len(mobilenet))), jnp.float32)

    def loss(stored):
        return scales[0] * 4.0**-stored.weight_bits + scales[1] * 4.0**-stored.activation_bits

    bits = choices(weight_bits=range(2, 9), activation_bits=range(2, 9))
    device, full = BitSerial.cloud(), float(BitSerial.cloud().cost(mobilenet).latency_s)
    found = {way: allocate(mobilenet, device, loss, 0.6 * full, bits, method=way) for way in METHODS}
    exact = float(found["exact"].loss)
    assert float(found["exact"].gap) <= 0.01 * exact
    uniform = jnp.sum(loss(Stored(weight_bits=5.0, activation_bits=5.0)))
    for way, result in found.items():
        assert float(result.spent) <= 0.6 * full * (1 + 1e-6)
        assert exact * (1 - 1e-3) <= float(result.loss) <= 1.01 * exact, way
        assert float(result.loss) < 0.5 * float(uniform)


@pytest.mark.slow
def test_densities_are_chosen_too_and_forbidden_choices_are_not_made():
    densities = choices(output_density=(0.25, 0.5, 1.0))
    table = np.array([[4.0, 1.0, 0.0], [np.inf, np.inf, 0.0], [8.0, 3.0, 0.0], [1.0, 0.5, 0.0]])
    device = Systolic(8, 8)
    budget = 0.7 * float(device.cost(LAYERS).latency_s)
    found = allocate(LAYERS, device, table, budget, densities)
    assert float(found.stored.output_density[1]) == 1.0 and float(found.spent) <= budget
    expected = brute_force(LAYERS, device, table, budget, densities, "latency_s")
    assert float(found.loss) == pytest.approx(expected)


@pytest.mark.slow
def test_products_of_one_leaf_choose_alike():
    one, two, *others = LAYERS
    shared = Workload((dataclasses.replace(one, path="one"), dataclasses.replace(two, path="one", copies=0), *others))
    for method in METHODS:
        found = allocate(shared, BitSerial(), noise, 0.5 * BitSerial().cost(shared).latency_s, BITS, method=method)
        assert found.choice[0] == found.choice[1]


class Slowest(BitSerial):
    """A pipeline: as slow as its slowest layer, so that costs do not add up."""

    def cost(self, workload, stored=Stored(), mode=Exact()):
        found = Device.cost(self, workload, stored, mode)
        return dataclasses.replace(found, latency_s=mode.maximum(*found.products.latency_s))


jc.register_dataclass(Slowest)


@pytest.mark.parametrize(
    ("device", "cost"), [(Slowest(), "latency_s"), (BitSerial(), "activation_bytes")], ids=["pipeline", "memory"]
)
@pytest.mark.slow
def test_costs_that_do_not_add_up_are_kept_within_their_budget(device, cost):
    least, most = (
        float(getattr(device.cost(LAYERS, Stored(weight_bits=w, activation_bits=a)), cost)) for w, a in ((2, 4), (8, 8))
    )
    table = table_of(noise, BITS)
    for share in (0.1, 0.5, 0.8):
        budget = least + share * (most - least)
        found = allocate(LAYERS, device, table, budget, BITS, cost=cost)
        expected = brute_force(LAYERS, device, table, budget, BITS, cost)
        assert float(found.spent) <= budget * (1 + 1e-6) and np.isnan(float(found.bound))
        assert expected * (1 - 1e-5) <= float(found.loss) <= 1.05 * expected
    with pytest.raises(ValueError, match="does not add up over products, as 'exact' needs: use 'price'"):
        allocate(LAYERS, device, table, most, BITS, cost=cost, method="exact")


def test_a_budget_that_cannot_be_met_is_an_error_that_names_the_least_cost():
    least = float(BitSerial().cost(LAYERS, Stored(weight_bits=2.0, activation_bits=4.0)).latency_s)
    with pytest.raises(ValueError, match=rf"cannot be met: the cheapest choices of 4 products cost {least:.6g}"):
        allocate(LAYERS, BitSerial(), noise, 0.9 * least, BITS)
    assert float(allocate(LAYERS, BitSerial(), noise, least, BITS).spent) == pytest.approx(least)


@pytest.mark.slow
def test_budgets_are_mapped_in_one_program():
    full = float(BitSerial().cost(LAYERS).latency_s)
    table = table_of(noise, BITS)

    def loss(budget):
        return allocate(LAYERS, BitSerial(), table, budget, BITS, units=500).loss

    budgets = full * jnp.array([0.5, 0.7, 0.9])
    together = jax.jit(jax.vmap(loss))(budgets)
    np.testing.assert_allclose(together, [loss(float(b)) for b in budgets], rtol=1e-5)
    assert (jnp.diff(together) <= 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(choices={"bits": [1.0]}), r"choices are of \['bits'\], expected fields of Stored: weight_bits"),
        (dict(choices={"weight_bits": [1.0], "density": [0.5, 1.0]}), "must be arrays of one length"),
        (dict(cost="joules"), "cost is 'joules', expected one of"),
        (dict(cost="energy_j"), "BitSerial does not know its energy_j: budget another cost"),
        (dict(method="guess"), "method is 'guess', expected one of"),
        (
            dict(sensitivity=np.ones((4, 5))),
            r"sensitivity has shape \(4, 5\), expected \[products, choices\], \(4, 6\)",
        ),
        (dict(sensitivity=np.full((4, 6), np.inf)), r"no choice is allowed \(all losses infinite\) for \['conv'"),
        (dict(sensitivity=np.ones((4, 6)), method="gradient"), "needs a sensitivity that is a differentiable function"),
        (dict(units=0), "units must be a whole number from 1, found 0"),
        (dict(workload=Workload(())), "the workload has no products"),
    ],
)
def test_misuse_is_refused_with_the_remedy(change, message):
    given = dict(workload=LAYERS, device=BitSerial(), sensitivity=noise, budget=1.0, choices=BITS)
    with pytest.raises(ValueError, match=message):
        allocate(**(given | change))


def test_an_allocation_prints_what_was_chosen():
    text = str(allocate(LAYERS, BitSerial(), noise, 1.0, BITS))
    assert "weight bits" in text and "depth" not in text and "dense" in text and "spent" in text
