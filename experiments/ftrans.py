"""A transformer of block-circulant matrices: from scratch, and from a dense one; text foretold, bytes, and real time.

Li et al., FTRANS: Energy-Efficient Acceleration of Transformers using FPGA, ISLPED 2020 (arXiv 2007.08563). Its claims:
every matrix of attention and feed-forward cut into circulant blocks of side 4 or 8, a shallow transformer loses little
or nothing; index vectors are better taken as means over a block than as its first row or column, as CirCNN and C-LSTM
do; a model is up to 16 times smaller. The paper has a language model of two layers and 6 million weights on WikiText-2,
and RoBERTa; here it is one of two layers and 0.35 million that reads Penn Treebank by characters. Embeddings, norms,
biases and the head stay dense, as in the paper. Equation (3) by the letter takes the means of rows, which are all
alike in a circulant block; the means along wrapped diagonals, which are the Euclidean projection, are what is meant
here by the paper's rule, and both are run.

From scratch, index vectors are trained, starting from the first columns of random matrices. From one dense network a
seed, every method has as many steps on the same batches: index vectors by the paper's rule, and at the least side by
two others; ADMM, for half of them, and then index vectors; two factors of as many numbers; weights pruned by magnitude
to as many numbers, and to as many bytes with what says which are kept. The time is that of random weights on this
machine, in turns.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.table import Table

from experiments import _ftrans_latency as latency
from experiments import _ftrans_study as study
from experiments import _ftrans_text, _plots, _tables
from experiments._compression_report import ahead, curve_point, values
from experiments._ftrans_latency import Beside
from experiments._ftrans_network import Transformer
from experiments._ftrans_study import Config, Outcome, Study
from experiments._ftrans_task import Task
from experiments._kept import kept
from experiments._latency import Latency, times
from experiments._registry import Context, experiment
from experiments._statistics import percent, points, verdict, with_error

_PAPER = (
    "Of the paper, accuracy lost: its shallow transformer on WikiText-2 0 % with blocks of 4 and 0.6 % with 8; "
    "RoBERTa-base on IMDB 4.2 % and 4.3 %."
)
_NEAR = 1.0  # points that count as little
_NOTHING = 0.1  # and as nothing
_DRAWN = (study.SCRATCH, study.DIAGONAL, study.ADMM, study.LOW_RANK, study.MAGNITUDE)

Found = dict[int, dict[str, list[Outcome]]]  # by side of the blocks and method, a seed an entry


class Seeded(NamedTuple):
    """What one seed gave; `found` by side of the blocks and method."""

    dense: Outcome
    on: Outcome
    found: dict[int, dict[str, Outcome]]


@experiment(
    "ftrans",
    paper="arXiv 2007.08563",
    summary="a transformer of block-circulant matrices foretells text: accuracy, bytes, and time as compiled",
    data=None,
)
def run(config: Config, context: Context) -> dict[str, Any]:
    text = _ftrans_text.load(config.length)
    task = Task(
        Transformer(len(text.alphabet), config.width, config.hidden, config.heads, config.depth),
        text,
        batch_size=config.batch_size,
        steps=config.steps,
        windows=config.windows,
        folder=(context.folder / "checkpoints").absolute(),
        console=context.console,
    )
    ways = Study(task, config)
    done = functools.partial(kept, context.folder)
    chosen = done("chosen", ways.chosen)
    context.say("chosen on validation: " + ", ".join(f"{name} {value:g}" for name, value in chosen.items()))

    def seeded(seed: int) -> Seeded:
        """One seed after another, so that what an interrupted run leaves is whole seeds."""

        def one(name: str, make: Callable[..., Outcome], *arguments: Any) -> Outcome:
            return Outcome(**done(f"{name}-{seed}", make, *arguments, seed, chosen))

        dense, on = one("dense", ways.scratch, 1), one("dense-on", ways.finetuned, study.ON, 1)
        found = {
            side: {study.SCRATCH: one(f"scratch-{side}", ways.scratch, side)}
            | {method: one(f"{method}-{side}", ways.finetuned, method, side) for method in config.methods_of(side)}
            for side in config.sides
        }
        return Seeded(dense, on, found)

    seeds = [seeded(seed) for seed in context.seeds]
    dense, on = [each.dense for each in seeds], [each.on for each in seeds]
    found = {
        side: {method: [each.found[side][method] for each in seeds] for method in methods}
        for side, methods in seeds[0].found.items()
    }
    claims = _claims(found, dense, on)
    context.say(*claims)
    context.console.print(_accuracies(context, found, dense, on))
    context.console.print(_sizes(found, dense[0]))
    shown = [method for method in _DRAWN if method in found[config.sides[0]]]
    curves = {method: [curve_point(each[method], "accuracy") for each in found.values()] for method in shown}
    _plots.accuracy_against_compression(
        context.folder / "accuracy.png", curves, dense=float(values(on, "accuracy").mean())
    )
    compiled, beside = _times(task, config, done)
    context.console.print(times(compiled, config.pairs))
    context.console.print(latency.table(beside, config.pairs))
    return {
        "claims": claims,
        "chosen": chosen,
        "dense": dense,
        "dense, trained on": on,
        "found": found,
        "compiled": compiled,
        "beside": beside,
    }


def _times(
    task: Task, config: Config, done: Callable[..., Any]
) -> tuple[dict[str, list[Latency]], dict[str, list[Beside]]]:
    """Of the network and of a feed-forward block of the paper's size, compiled; of the block, by other ways too."""
    block, weights = latency.feed_forward(config.layer)
    width = config.layer[0]
    rows = {batch: jax.random.normal(jax.random.key(batch), (batch, width)) for batch in config.batches}
    texts = {batch: task.text.test.spread(batch).read for batch in config.batches}
    named = {
        "language model": (task.apply, task.init(0), texts),
        f"feed-forward {width}x{config.layer[1]}": (block, weights, rows),
    }
    compiled = {
        f"{name}, blocks of {side}": [
            Latency(**done(f"time-{name}-{side}-{batch}", latency.compiled, *network, side, x, config.pairs))
            for batch, x in inputs.items()
        ]
        for name, (*network, inputs) in named.items()
        for side in config.sides
    }
    beside = {
        f"{form}, {side}": [
            Beside(**done(f"time-{form}-{side}-{batch}", latency.beside, weights, form, side, x, config.pairs))
            for batch, x in rows.items()
        ]
        for form in (latency.FFT, latency.LOW_RANK)
        for side in config.sides
    }
    return compiled, beside


def _claims(found: Found, dense: list[Outcome], on: list[Outcome]) -> list[str]:
    """What the run says of the paper's claims, in characters foretold, paired by seed."""
    lines = []

    def says(margins: np.ndarray, claim: str, shown: np.ndarray) -> None:
        lines.append(f"{verdict(margins)}: {claim} ({points(shown)} points).")

    for side, methods in found.items():
        for name, rival in ((study.SCRATCH, dense), (study.DIAGONAL, on)):
            lost = ahead(rival, methods[name], "accuracy")
            says(_NEAR - lost, f"blocks of {side}, {name}, lose less than {_NEAR:g} point", lost)
        pairs = [
            (study.DIAGONAL, study.COLUMN),
            (study.DIAGONAL, study.ROW),
            (study.ADMM, study.DIAGONAL),
            (study.DIAGONAL, study.LOW_RANK),
            (study.SCRATCH, study.DIAGONAL),
            (study.SCRATCH, study.LOW_RANK),
            (study.SCRATCH, study.MAGNITUDE),
            (study.SCRATCH, study.AS_BYTES),
        ]
        for ours, theirs in pairs:
            if ours in methods and theirs in methods:
                lead = ahead(methods[ours], methods[theirs], "accuracy")
                says(lead, f"blocks of {side}: {ours} is ahead of {theirs}", lead)
        halved = 100 * (values(methods[study.DIAGONAL], "accuracy") - values(methods[study.DIAGONAL], "half_accuracy"))
        says(_NOTHING - halved, f"blocks of {side}: 16 bits lose less than {_NOTHING:g} points", halved)
    for less, more in zip(list(found)[:-1], list(found)[1:], strict=True):
        for name in (study.SCRATCH, study.DIAGONAL):
            lead = ahead(found[less][name], found[more][name], "accuracy")
            says(lead, f"blocks of {less} are ahead of {more}, {name}", lead)
    return lines


def _accuracies(context: Context, found: Found, dense: list[Outcome], on: list[Outcome]) -> Table:
    seeds = len(context.seeds)
    drawn = _tables.blank(
        f"Penn Treebank by characters, test, mean of {seeds} seed{'s' * (seeds > 1)}",
        ("method", "numbers", "landed, bits", "bits a character", "foretold %", "to\ndense"),
        caption=f"To dense: in points; from scratch, of as many steps, and otherwise trained on. {_PAPER}",
    )
    for name, outcomes in (("dense, from scratch", dense), ("dense, trained on", on)):
        drawn.add_row(name, *_figures(outcomes), "", end_section=outcomes is on)
    for side, methods in found.items():
        drawn.add_row(f"[bold]blocks of {side}[/]")
        for name, outcomes in methods.items():
            to = points(ahead(outcomes, dense if name == study.SCRATCH else on, "accuracy"))
            drawn.add_row(name, *_figures(outcomes), to, end_section=name == list(methods)[-1])
    return drawn


def _figures(outcomes: list[Outcome]) -> tuple[str, ...]:
    landed, bits = (with_error(values(outcomes, key), ".3f") for key in ("landed", "bits"))
    return f"{outcomes[0].numbers:,}", landed, bits, percent(values(outcomes, "accuracy"))


def _sizes(found: Found, dense: Outcome) -> Table:
    """Of the first seed's files, in which the other seeds have as many bytes or nearly."""
    drawn = _tables.blank(
        "bytes of the matrices on disk",
        ("method", "32 bits a number", "smaller", "16 bits", "smaller", "16 bits cost, points"),
        caption=f"Smaller than {dense.bytes:,} bytes, dense at 32 bits. The paper: up to 16 times.",
    )
    for side, methods in found.items():
        drawn.add_row(f"[bold]blocks of {side}[/]")
        for name, outcomes in methods.items():
            first = outcomes[0]
            cost = 100 * (values(outcomes, "half_accuracy") - values(outcomes, "accuracy"))
            sizes = (
                cell for size in (first.bytes, first.half_bytes) for cell in (f"{size:,}", f"{dense.bytes / size:.1f}x")
            )
            drawn.add_row(name, *sizes, points(cost), end_section=name == list(methods)[-1])
    return drawn
