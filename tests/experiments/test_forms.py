"""FORMS, run short: arrays and times as formulas have them, one sign a fragment, and verdicts that follow."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _data, forms
from experiments.__main__ import main
from experiments._forms_cost import Silicon, designs, input_cycles, workload
from experiments._models import LeNet5


@pytest.fixture(scope="module")
def lenet():
    images = _data.load("digits").test.image
    model = LeNet5()
    return model, model.init(jax.random.key(0), images[:1])["params"], images


@pytest.mark.slow
def test_arrays_of_lenet_are_those_of_the_formula(lenet):
    model, params, images = lenet
    found = designs(workload(model, params, images), 8.0, (8,), {8: np.full(4, 16.0)})
    # conv1 25 x 20, conv2 500 x 50, fc1 800 x 500, fc2 500 x 10, at 8 or 4 cells a weight
    eight, four = (sum(-(-r // 128) * -(-f * c // 128) for r, f in _SHAPES) for c in (8, 4))
    assert found["ISAAC, 16 bits"].arrays == eight and found["ISAAC, 8 bits"].arrays == four
    assert found["FORMS, 8 rows, polarized"].arrays * 2 == found["FORMS, 8 rows, two arrays"].arrays == 2 * four


_SHAPES = ((25, 20), (500, 50), (800, 500), (500, 10))


def test_cycles_that_are_skipped_make_an_image_faster(lenet):
    model, params, images = lenet
    work = workload(model, params, images)
    all_of_them, half = (designs(work, 8.0, (8,), {8: np.full(4, n)}) for n in (16.0, 8.0))
    name = "FORMS, 8 rows, polarized"
    assert half[name].latency_s == pytest.approx(all_of_them[name].latency_s / 2)
    assert half["ISAAC, 8 bits"] == all_of_them["ISAAC, 8 bits"]


def test_input_cycles_grow_with_the_fragment_and_stay_below_the_bits(lenet):
    model, params, images = lenet
    found = input_cycles(model, params, images[:20], (4, 16))
    assert found[4].shape == (4,)
    assert (found[4] <= found[16]).all() and (found[16] <= 16).all() and (found[4] > 0).all()


def test_noise_multiplies_cells_and_an_offset_spreads_it_over_all_weights():
    w = jnp.array([[0.0, 0.01, 1.0]])
    magnitudes, lifted = (forms._through_cells(w, 0.1, jax.random.key(0), offset) for offset in (0.0, 1.0))
    assert magnitudes[0, 0] == 0
    np.testing.assert_allclose(magnitudes, w * jnp.exp(0.1 * jax.random.normal(jax.random.key(0), (1, 3))), rtol=1e-5)
    assert abs(lifted[0, 0]) > 0.001


def outcomes(*accuracies):
    return [forms.Outcome(accuracy - 0.1, accuracy) for accuracy in accuracies]


def test_verdicts_follow_from_paired_differences():
    found = {"ADMM": {8: outcomes(0.99, 0.98, 0.97)}, "one-shot": {8: outcomes(0.98, 0.971, 0.96)}}
    noisy = {forms._DUAL: [0.1, 0.2, 0.1], "polarized, 8": [1.1, 1.3, 1.1]}
    silicon = {"ISAAC, 16 bits": Silicon(2, 1.0, 2.0, 2.0), "ISAAC, 8 bits": Silicon(1, 1.0, 1.0, 1.0)}
    silicon["FORMS, 8 rows, polarized"] = Silicon(1, 0.5, 1.0, 2.0)
    claims = forms._claims(found, [0.99, 0.981, 0.97], noisy, silicon)
    starts = [claim.split(":")[0] for claim in claims]
    assert starts[:4] == ["Holds", "Holds", "Holds", "Does not hold"]
    assert claims[-1].endswith("2.00 times the images per second and mm2 of ISAAC, 0.50 per joule.")


@pytest.mark.slow
def test_a_run_writes_its_table_and_its_plot(tmp_path):
    settings = ["steps=3", "pretrain=1", "rounds=1", "retrain=1", "chips=2", "images=50", "noisy_images=50"]
    assert main(["run", "forms", "--data", "digits", "--quick", "--results", str(tmp_path), "--set", *settings]) == 0
    (result,) = tmp_path.rglob("result.json")
    metrics = json.loads(result.read_text())["metrics"]
    assert set(metrics["found"]) == {"ADMM", "one-shot"}
    assert (result.parent / "accuracy.png").exists()
