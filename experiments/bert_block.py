"""A pretrained transformer pruned by columns of blocks after fine-tuning: accuracy, bytes, and real time.

Li et al., Efficient Transformer-based Large Scale Language Representations using Hardware-friendly Block Structured
Pruning, Findings of EMNLP 2020 (arXiv 2009.08065). Its claims: a group lasso whose weights are recomputed as training
goes finds better columns than one that pushes all alike, and than magnitudes do; pruned so, BERT's matrices are up to
5x smaller at little or no loss on certain tasks; and blocks of whole columns run fast. The paper has BERT, RoBERTa and
DistilBERT on GLUE; here it is MiniLM, six layers of 384 units, on the sentences of SST-2.

The encoder is fine-tuned. Then, from it, each method trains on for as many rounds with its lasso by proximal steps,
which keeps Adam from undoing the weights of the groups; at each rate the largest columns of every strip are kept, and
trained on within their mask. One-shot magnitude trains on without a lasso. Kept is at most the same share of every
strip of every matrix, where the paper has a threshold: work is balanced. Embeddings, biases, norms and the head are
not pruned, and embeddings are not trained. The time is that of the whole network on one sentence.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.table import Table

import jaxcomp as jc
from experiments import _plots, _tables
from experiments._bert_block_study import FIXED, METHODS, ONE_SHOT, REWEIGHTED, Config, Study, padded, prepared
from experiments._bert_block_task import Task, classify
from experiments._compression_report import Outcome, ahead, curve_point, values
from experiments._kept import kept
from experiments._latency import Latency, measured, times
from experiments._registry import Context, experiment
from experiments._statistics import percent, points, verdict

Found = dict[float, dict[str, list[Outcome]]]  # by rate and method, a seed an entry

_FASTER = 2.5  # than dense, at the highest rate
_SAME = 1e-4  # how far an output may be from the masked network's


@experiment(
    "bert-block",
    paper="arXiv 2009.08065",
    summary="a pretrained MiniLM on SST-2 pruned by columns of blocks: accuracy, bytes, and time as compiled",
    data=None,
)
def run(config: Config, context: Context) -> dict[str, Any]:
    params, splits = prepared(config)
    embeddings = params.pop("embeddings")
    task = Task(
        embeddings,
        splits["train"],
        batch_size=config.batch_size,
        steps=config.steps,
        learning_rate=config.learning_rate,
        folder=(context.folder / "checkpoints").absolute(),
        console=context.console,
    )
    study = Study(task, params, splits, config)
    done = functools.partial(kept, context.folder)
    dense = [done(f"dense-{seed}", study.dense, seed) for seed in context.seeds]
    found: Found = {rate: {} for rate in config.rates}
    stored: dict[float, dict[str, int]] = {}
    reaches: dict[str, dict[float, float]] = {method: {} for method in METHODS}
    for method, chosen in reaches.items():
        for rate in config.rates:
            chosen[rate] = reach = done(f"reach-{method}-{rate:g}x", study.chosen_reach, method, rate, 0)
            each = [
                done(f"{method}-{rate:g}x-{seed}", study.outcome, method, reach, rate, seed) for seed in context.seeds
            ]
            found[rate][method] = [Outcome(**one["outcome"]) for one in each]
            stored[rate] = each[0]["bytes"]
    for method in (REWEIGHTED, FIXED) if len(config.reach) > 1 else ():
        shown = ", ".join(f"{reach:g} at {rate:g}x" for rate, reach in reaches[method].items())
        context.say(f"reach of the {method}, best of {len(config.reach)}: {shown}")
    unpruned = study.stored(params, {})
    latencies = _latencies(study, padded(splits["test"]))
    claims = _claims(found, dense, latencies)
    context.say(*claims)
    context.console.print(_accuracies(found, dense))
    context.console.print(_sizes(stored, unpruned))
    context.console.print(times({name: [one] for name, one in latencies.items()}, config.pairs))
    curves = {method: [curve_point(methods[method], "accuracy") for methods in found.values()] for method in METHODS}
    _plots.accuracy_against_compression(context.folder / "accuracy.png", curves, dense=float(np.mean(dense)))
    return {
        "claims": claims,
        "reach": reaches,
        "dense": dense,
        "found": found,
        "stored": stored | {1.0: unpruned},
        "latencies": latencies,
    }


def _latencies(study: Study, tokens: np.ndarray) -> dict[str, Latency]:
    """Of what magnitude leaves as cut: as much as the rate allows, where a lasso may leave less."""
    found = {}
    for rate in study.config.rates:
        spec = study.spec(rate)
        params = jc.project(spec, study.trained(ONE_SHOT, 0.0, 0)) | {"embeddings": study.task.embeddings}
        found[f"{rate:g}x"] = measured(classify, params, spec, jnp.asarray(tokens), study.config.pairs)
    return found


def _claims(found: Found, dense: list[float], latencies: dict[str, Latency]) -> list[str]:
    """What the run says of the paper's claims."""
    lines = []
    for rate, methods in found.items():
        for ours, theirs in ((REWEIGHTED, FIXED), (FIXED, ONE_SHOT)):
            gain = ahead(methods[ours], methods[theirs], "accuracy")
            lines.append(f"{verdict(gain)}: at {rate:g}x {ours} is ahead of {theirs} ({points(gain)} points).")
    for rate, methods in found.items():
        lost = 100 * (np.array(dense) - values(methods[REWEIGHTED], "accuracy"))
        lines.append(f"{verdict(1 - lost)}: at {rate:g}x {REWEIGHTED} loses less than 1 point ({points(lost)}).")
    rate, last = list(latencies.items())[-1]
    speed, far = f"{last.faster:.2f}x", max(one.difference for one in latencies.values())
    lines.append(f"{_word(last.faster >= _FASTER)}: at {rate} a sentence takes {_FASTER}x less time ({speed}).")
    lines.append(f"{_word(far <= _SAME)}: compiled outputs are the masked network's to {_SAME:g} ({far:.1g}).")
    return lines


def _word(holds: bool) -> str:
    return "Holds" if holds else "Does not hold"


def _accuracies(found: Found, dense: list[float]) -> Table:
    seeds = len(dense)
    drawn = _tables.blank(
        f"MiniLM on SST-2, test sentences, mean of {seeds} seed{'s' * (seeds > 1)}",
        ["method", "kept", "as cut %", "fine-tuned %", "lost"],
        text=["method"],
        caption=f"Trained on without pruning: {percent(dense)} %. No figure of the paper is for this network.",
    )
    for rate, methods in found.items():
        drawn.add_row(f"[bold]{rate:g}x[/]")
        for method, outcomes in methods.items():
            lost = 100 * (values(outcomes, "accuracy") - np.array(dense))
            figures = percent(values(outcomes, "landed")), percent(values(outcomes, "accuracy")), points(lost)
            drawn.add_row(method, f"{outcomes[0].kept:,}", *figures, end_section=method == ONE_SHOT)
    return drawn


def _sizes(stored: dict[float, dict[str, int]], unpruned: dict[str, int]) -> Table:
    """On disk, where what is kept of a strip is its columns and which they are."""
    columns = ["", "matrices, promised", "matrices", "smaller", "whole model", "smaller"]
    drawn = _tables.blank("bytes on disk", columns, text=[""])
    for name, found in {"dense": unpruned, **{f"{rate:g}x": each for rate, each in stored.items()}}.items():
        parts = ((found[part], unpruned[part] / found[part]) for part in ("matrices", "model"))
        cells = (cell for size, smaller in parts for cell in (f"{size:,}", f"{smaller:.2f}x"))
        drawn.add_row(name, f"{found['promised']:,}", *cells)
    return drawn
