"""What ADMM adds to a training step, and the same step in PyTorch.

For LeNet-5 and a perceptron of ten million weights, batch 64, Adam, milliseconds a step of these programs, each in a
process of its own:

- a plain optax loop inside ``lax.scan``, as one would write it without jaxcomp;
- rounds of `jaxcomp.solve` without constraints;
- the same under ADMM with every kernel pruned to 5 %, its projections and dual step counted in;
- PyTorch loops of the same model without and with ADMM's penalty (of which the projections are left out), if torch is
  installed: with its default Adam and with its fused one.

A run is one round of 938 steps, an epoch of MNIST, and projections at its start, after the round and at
its end. Besides, how often ten rounds at each of five hyper-parameter settings compile the round: once.
"""

import functools
import importlib.util
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from rich.table import Table

import jaxcomp as jc
from benchmarks._timing import Times, in_turns_apart, ratio
from experiments._models import LeNet5

BATCH, EXAMPLES, RATE, RHO, DENSITY = 64, 2048, 1e-3, 1e-3, 0.05
STEPS = 938  # of a round: an epoch of MNIST
TORCH_STEPS = 100  # which has no rounds: what a step takes does not depend on how many there are


class Perceptron(nn.Module):
    """9.7 million weights."""

    widths: tuple[int, ...] = (2048, 2048, 1900)

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for i, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, name=f"fc{i + 1}")(x))
        return nn.Dense(10, name="out")(x)


def measure(repeats: int) -> tuple[dict[str, Any], Table]:
    """Median milliseconds a step, ratios turn by turn, and the count of compilations."""
    columns = ("model", "program", "ms a step", "CPU ms", "ADMM's time by it", "CPU")
    table, figures = Table(*columns, title=f"Adam, batch {BATCH}; a round of {STEPS} steps"), {}
    for model in (LeNet5(), Perceptron()):
        name = type(model).__name__
        times = in_turns_apart(_programs(model), repeats)
        times = {program: _a_step(program, time) for program, time in times.items()}
        figures[name] = {}
        for program, time in times.items():
            row = {
                "ms": 1e3 * time.median,
                "cpu_ms": 1e3 * statistics.median(time.cpu),
                "admm_by_it": ratio(times["jaxcomp, ADMM"], time),
                "admm_by_it_cpu": ratio(times["jaxcomp, ADMM"], time, "cpu"),
            }
            figures[name][program] = row
            table.add_row(name, program, *(f"{value:.2f}" for value in row.values()))
    figures["compilations"] = compilations()
    table.caption = f"compilations in 10 rounds at each of 5 settings of rho and density: {figures['compilations']}"
    return figures, table


def _a_step(program: str, times: Times) -> Times:
    steps = TORCH_STEPS if program.startswith("torch") else STEPS
    return Times(*([seconds / steps for seconds in clock] for clock in times))


def _examples() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((EXAMPLES, 28, 28, 1), np.float32), rng.integers(0, 10, EXAMPLES).astype(np.int32)


def _loss(model: nn.Module) -> Callable:
    def loss(params, batch):
        logits = model.apply({"params": params}, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    return loss


def _programs(model: nn.Module) -> dict[str, Callable[[], Callable]]:
    programs = {
        "optax": functools.partial(_optax, model),
        "jaxcomp, no constraint": functools.partial(_jaxcomp, model, pruned=False),
        "jaxcomp, ADMM": functools.partial(_jaxcomp, model, pruned=True),
    }
    if importlib.util.find_spec("torch") is None:
        return programs
    return programs | {
        f"torch, {'ADMM' if penalty else 'no constraint'}{', fused Adam' if fused else ''}": functools.partial(
            _torch, type(model).__name__, fused, penalty
        )
        for penalty in (False, True)
        for fused in (False, True)
    }


def _problem(model: nn.Module) -> tuple[Callable, Any, jc.Batches, optax.GradientTransformation]:
    images, labels = map(jnp.asarray, _examples())
    params = model.init(jax.random.key(0), images[:1])["params"]
    return _loss(model), params, jc.shuffled((images, labels), BATCH, STEPS), optax.adam(RATE)


def _optax(model: nn.Module) -> Callable:
    loss, params, batches, optimizer = _problem(model)

    @jax.jit
    def train(params, opt_state, batches):
        def step(carry, rows):
            params, opt_state = carry
            gradient = jax.grad(loss)(params, (batches.data[0][rows], batches.data[1][rows]))
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        return lax.scan(step, (params, opt_state), batches.order)[0]

    opt_state = optimizer.init(params)
    return lambda: jax.block_until_ready(train(params, opt_state, batches))


def _jaxcomp(model: nn.Module, pruned: bool) -> Callable:
    loss, params, batches, optimizer = _problem(model)
    solver = jc.ADMM(jc.assign(params, {r".*/kernel": jc.Sparse(DENSITY)}) if pruned else {}, rho=RHO)

    def solve():
        return jc.solve(loss, params, batches, solver, optimizer=optimizer, rounds=1, steps=STEPS).state

    return lambda: jax.block_until_ready(solve())


def _torch(name: str, fused: bool, penalty: bool) -> Callable:
    import torch

    images, labels = _examples()
    images, labels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long()
    order = torch.randint(0, EXAMPLES, (TORCH_STEPS, BATCH), generator=torch.Generator().manual_seed(0))
    model = _torch_model(torch.nn, name)
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=fused)
    kernels = [p for p in model.parameters() if p.ndim > 1] if penalty else []
    anchors = [p.detach().clone() for p in kernels]  # their values cost nothing
    criterion = torch.nn.CrossEntropyLoss()

    def run():
        for rows in order:
            optimizer.zero_grad()
            criterion(model(images[rows]), labels[rows]).backward()
            for weight, anchor in zip(kernels, anchors, strict=True):
                weight.grad.add_(weight.detach() - anchor, alpha=RHO)
            optimizer.step()

    return run


def _torch_model(nn: Any, name: str) -> Any:
    if name == "LeNet5":
        convolutions = [
            nn.Conv2d(1, 20, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))
    widths = (784, *Perceptron.widths)
    hidden = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], 10))


def compilations() -> int:
    """How often the loss is traced in ten rounds at each of five settings: every compilation traces it once."""
    images, labels = _examples()
    model = nn.Dense(10)
    params = model.init(jax.random.key(0), images[:1].reshape(1, -1))["params"]
    batches = jc.shuffled((images.reshape(EXAMPLES, -1), labels), BATCH, 10)
    optimizer, traces = optax.adam(RATE), 0
    inner = _loss(model)

    def loss(params, batch):
        nonlocal traces
        traces += 1
        return inner(params, batch)

    for rho, density in ((1e-4, 0.5), (1e-3, 0.2), (1e-2, 0.1), (1e-1, 0.05), (1.0, 0.01)):
        solver = jc.ADMM(jc.assign(params, {"kernel": jc.Sparse(density)}), rho=rho)
        options = dict(optimizer=optimizer, rounds=10, steps=10, progress=False)
        jc.compress(loss, params, batches, solver, **options)
    return traces
