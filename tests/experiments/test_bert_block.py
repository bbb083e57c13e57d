"""The comparison of lassos on a small encoder of random weights: what is kept, what is the same for all, the claims."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from rich.console import Console

import jaxcomp as jc
from experiments import _bert_block_study as study_module
from experiments import _minilm, _sst2, bert_block
from experiments._bert_block_study import FIXED, METHODS, ONE_SHOT, REWEIGHTED, Config, Prepared, Study
from experiments._bert_block_task import Task, classify, logits, with_head
from experiments._compression_report import Outcome
from experiments._latency import Latency
from experiments._minilm import Sizes

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SIZES = Sizes(vocabulary=40, positions=16, width=64, hidden=128, depth=1)
REACH = 0.5
CONFIG = Config(
    batch_size=4,
    steps=3,
    length=16,
    most=4,
    finetune=1,  # as long as retraining, so one program for both
    rounds=2,
    retrain=1,
    rates=(4.0,),
    strip=32,
    reach=(REACH,),
    pairs=1,
)


def sentences(n, seed):
    """Sentences of words drawn at random; the label is whether a good word outnumbers a bad one."""
    rng = np.random.default_rng(seed)
    words = [rng.integers(4, 40, rng.integers(3, 9)).tolist() for _ in range(n)]
    labels = [int(np.mean(each) > 22) for each in words]
    return _sst2.packed(words, labels, lambda each, length: [2, *each[: length - 2], 3], length=16, most=4)


@pytest.fixture(scope="module")
def ready():
    params = with_head(_minilm.minilm_random(jax.random.key(0), SIZES))
    return Prepared(params, {split: sentences(n, n) for split, n in (("train", 60), ("dev", 20), ("test", 30))})


@pytest.fixture
def study(ready, tmp_path):
    params, splits = dict(ready.params), ready.splits
    numbers = {name: getattr(CONFIG, name) for name in ("batch_size", "steps", "learning_rate")}
    task = Task(params.pop("embeddings"), splits["train"], **numbers, folder=tmp_path, console=Console(quiet=True))
    return Study(task, params, splits, CONFIG)


@pytest.mark.parametrize("rate", [2.0, 3.3])
def test_every_strip_of_every_matrix_keeps_as_many_whole_columns(study, rate):
    spec = study.spec(rate)
    pruned = jc.project(spec, study.params)
    assert len(spec) == 6 * SIZES.depth and not any("head" in path for path in spec)
    for path in spec:
        layer, part, name, _ = path.split("/")
        kernel = np.asarray(pruned[layer][part][name]["kernel"])  # inputs by outputs
        strips = 1 if name == "up" else kernel.shape[1] // CONFIG.strip
        for strip in np.split(kernel, strips, axis=1):
            used = (strip != 0).all(axis=1)
            assert used.sum() == round(len(strip) / rate) and not strip[~used].any()


def test_methods_are_numbers_apart(study):
    solvers = {method: study.solver(method, 0.0 if method == ONE_SHOT else REACH) for method in METHODS}
    (structure,) = {jax.tree.structure(solver) for solver in solvers.values()}  # so one compilation for all
    assert structure.num_leaves > 0
    assert not any(solvers[ONE_SHOT].strength.values())
    assert solvers[REWEIGHTED].epsilon < 1e-2 < 1e2 < solvers[FIXED].epsilon


@pytest.fixture
def up(study):
    """The matrix into the hidden layer, whose columns are of one strip."""
    return np.asarray(study.params["layer0"]["feedforward"]["up"]["kernel"])


def with_up(params, kernel):
    """The weights with another such matrix."""
    layer = params["layer0"]
    return params | {"layer0": layer | {"feedforward": layer["feedforward"] | {"up": {"kernel": kernel}}}}


def pushed(study, method, kernel):
    """What a step of the lasso alone makes of the matrix."""
    params, solver = with_up(study.params, kernel), study.solver(method, REACH)
    return solver.prox(solver.init(params), params)["layer0"]["feedforward"]["up"]["kernel"]


def test_the_fixed_lasso_takes_as_much_of_every_group(study, up):
    before, after = (np.sqrt(np.mean(x**2, axis=1)) for x in (up, pushed(study, FIXED, up)))
    steps = CONFIG.steps * CONFIG.rounds
    np.testing.assert_allclose(before - after, REACH * np.sqrt(np.mean(up**2)) / steps, rtol=1e-2)


def test_the_reweighted_lasso_pushes_a_group_of_the_reach_half_as_hard_at_first(study, up):
    size, steps = REACH * np.sqrt(np.mean(up**2)), CONFIG.steps * CONFIG.rounds
    found = pushed(study, REWEIGHTED, np.full_like(up, size))
    epsilon = 1e-3
    np.testing.assert_allclose(found, size - size**2 / (size + epsilon) / (2 * steps), rtol=1e-5)


def test_a_lasso_reaches_as_far_into_a_matrix_of_small_weights(study, up):
    """As a share of its weights: a step is the same, whatever their scale."""
    whole = pushed(study, FIXED, up)
    study.params = with_up(study.params, up / 8)
    np.testing.assert_allclose(8 * pushed(study, FIXED, up / 8), whole, rtol=1e-3)


def test_magnitude_pruning_has_no_lasso(study):
    solver = study.solver(ONE_SHOT, 0.0)
    cut = solver.prox(solver.init(study.params), study.params)
    jax.tree.map(np.testing.assert_array_equal, cut, study.params)


def test_a_lasso_gets_the_reach_that_is_best_on_the_development_set_and_magnitude_none(study, monkeypatch):
    study.config = dataclasses.replace(CONFIG, reach=(0.1, 0.2, 0.3))
    monkeypatch.setattr(study, "trained", lambda method, reach, seed: reach)
    monkeypatch.setattr(study, "spec", lambda rate: rate)
    monkeypatch.setattr(jc, "project", lambda rate, reach: (rate, reach))
    asked = []

    def accuracy(landed, rows):
        asked.append(rows)
        rate, reach = landed
        return -abs(reach - rate / 10)

    monkeypatch.setattr(study.task, "accuracy", accuracy)
    assert [study.chosen_reach(REWEIGHTED, rate, 0) for rate in (1.0, 2.1, 5.0)] == [0.1, 0.2, 0.3]
    assert len(asked) == 9 and all(rows is study.splits["dev"] for rows in asked)
    assert study.chosen_reach(ONE_SHOT, 2.0, 0) == 0


def test_packed_sentences_are_scored_as_each_alone(ready):
    rows = ready.splits["test"]
    row, sentence = map(int, np.argwhere(rows.labels >= 0)[-1])
    alone = np.zeros((1, 16), np.int32)
    pieces = rows.tokens[row][rows.segments[row] == sentence + 1]
    alone[0, : len(pieces)] = pieces
    head = ready.params["head"] | {"kernel": jax.random.normal(jax.random.key(3), (64, 2))}
    params = ready.params | {"head": head}
    together = logits(params, rows)[row, sentence]
    np.testing.assert_allclose(classify(params, alone)[0], together, rtol=1e-4, atol=1e-5)


def test_accuracy_counts_sentences_and_not_rows(study, ready):
    """A head that always says 1 is right as often as that is the label."""
    rows = ready.splits["test"]
    head = {"kernel": np.zeros((64, 2), np.float32), "bias": np.array([0.0, 1.0], np.float32)}
    share = (rows.labels == 1).sum() / (rows.labels >= 0).sum()
    assert study.task.accuracy(study.params | {"head": head}, rows) == pytest.approx(share)


def outcome(accuracy):
    return Outcome(accuracy, accuracy, 1, 1.0, 1.0, 0.0, {})


def test_claims_follow_from_the_figures():
    accuracies = {REWEIGHTED: (0.9, 0.91), FIXED: (0.88, 0.889), ONE_SHOT: (0.89, 0.9)}
    found = {5.0: {method: [outcome(each) for each in pair] for method, pair in accuracies.items()}}
    latencies = {"5x": Latency(1, 2.0, 1.0, 2.4, 1.0, 1e-6)}
    claims = bert_block._claims(found, [0.905, 0.915], latencies)
    words = ["Holds", "Does not hold", "Holds", "Does not hold", "Holds"]
    assert [claim.split(":")[0] for claim in claims] == words
    assert "(+2.05 ± 0.05 points)" in claims[0] and "(2.40x)" in claims[3]


def test_only_as_many_layers_and_sentences_are_prepared_as_asked(monkeypatch):
    tokens = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "good": 3}
    params = _minilm.minilm_random(jax.random.key(0), SIZES)
    monkeypatch.setattr(study_module._minilm, "pretrained", lambda: params | {"layer2": {}, "layer3": {}})
    monkeypatch.setattr(study_module._minilm, "vocabulary", lambda: tokens)
    monkeypatch.setattr(study_module._sst2, "load", lambda split: (["good film"] * 9, [1] * 9))
    ready = study_module.prepared(Config(layers=1, sentences=5))
    assert sorted(ready.params) == ["embeddings", "head", "layer0"]
    assert all((rows.labels >= 0).sum() == 5 for rows in ready.splits.values())


@pytest.mark.slow
def test_an_interrupted_run_gives_what_an_unbroken_one_does(monkeypatch, ready, study, tmp_path):
    monkeypatch.setattr(bert_block, "prepared", lambda config: Prepared(dict(ready.params), ready.splits))
    folder = tmp_path / "broken"
    folder.mkdir()
    context = bert_block.Context(Console(quiet=True), folder, None, (0,), False)
    made, outcome = [], Study.outcome

    def interrupted(self, method, *arguments):
        if len(made) == 1 and method == FIXED:
            made.append("stopped")
            raise KeyboardInterrupt
        made.append(method)
        return outcome(self, method, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Study, "outcome", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bert_block.run(CONFIG, context)
        result = bert_block.run(CONFIG, context)
    assert made == [REWEIGHTED, "stopped", FIXED, ONE_SHOT]

    (rate,) = CONFIG.rates
    found = result["found"][rate]
    assert found[FIXED] == [study.outcome(FIXED, REACH, rate, 0)["outcome"]]
    assert all(each.violation == 0 and each.ratio == pytest.approx(rate) for (each,) in found.values())
    assert result["dense"] == [json.loads((folder / "dense-0.json").read_text())]

    stored, whole = result["stored"][rate], result["stored"][1.0]
    assert stored["promised"] <= stored["matrices"] < 1.02 * stored["promised"] < whole["matrices"] / rate * 1.05
    assert all(one.difference < 1e-4 for one in result["latencies"].values())
    assert (folder / "accuracy.png").is_file()
