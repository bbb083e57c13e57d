"""The command line: ``python -m experiments list``, ``run NAME`` and ``gallery``."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments import _data, _registry, _results, _settings
from experiments._errors import UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 2 if it could not be understood."""
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        options.command(options, console)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments", description="Published systems, rebuilt.")
    commands = parser.add_subparsers(required=True)
    listing = commands.add_parser("list", help="show the experiments")
    listing.set_defaults(command=_list)

    run = commands.add_parser("run", help="run one, and write its result and plots")
    run.set_defaults(command=_run)
    run.add_argument("name", help="as `list` shows it")
    run.add_argument("--data", choices=_data.NAMES, help="data set (default: the experiment's own)")
    run.add_argument("--data-dir", metavar="DIR", help=f"folder of data sets (default: ${_data.FOLDER_VARIABLE})")
    run.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change the configuration"
    )
    run.add_argument("--seeds", type=_positive, default=1, metavar="N", help="repeat with seeds 0 to N-1")
    run.add_argument("--quick", action="store_true", help="a short demonstration")
    run.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")

    gallery = commands.add_parser("gallery", help="draw a matrix and a convolution under every set")
    gallery.set_defaults(command=_draw_gallery)
    gallery.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _list(options: argparse.Namespace, console: Console) -> None:
    table = Table("name", "paper", "what it shows", "default data")
    for experiment in _registry.discover():
        table.add_row(experiment.name, experiment.paper, experiment.summary, experiment.data or "its own")
    for name, reason in sorted(_registry.BROKEN.items()):
        table.add_row(name, "", f"cannot be imported: {escape(reason)}", "")
    console.print(table)


def _draw_gallery(options: argparse.Namespace, console: Console) -> None:
    from experiments import _gallery  # which trains a network: of no use to the other commands

    _gallery.draw(options.results, console)


def _run(options: argparse.Namespace, console: Console) -> None:
    experiment = _registry.find(options.name)
    if experiment.data is None and options.data is not None:
        raise UsageError(f"--data {options.data}: {experiment.name} reads data of its own; leave --data out.")
    run = _results.Run(
        experiment=experiment,
        config=_settings.apply(experiment.default_config(options.quick), options.set),
        data=options.data or experiment.data,
        seeds=tuple(range(options.seeds)),
        quick=options.quick,
    )
    data = None if run.data is None else _data.load(run.data, options.data_dir)
    folder = run.folder(options.results)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    metrics = experiment.run(run.config, _registry.Context(console, folder, data, run.seeds, run.quick))
    path = _results.write(run, folder, metrics, time.perf_counter() - start)
    console.print(f"result and plots: {path.parent}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
