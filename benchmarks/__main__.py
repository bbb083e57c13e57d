"""The command line: ``python -m benchmarks [NAME ...]``; without a name, all of them."""

import argparse
import importlib
import json
from pathlib import Path

from rich.console import Console

NAMES = ("selection", "projections", "solver_overhead", "sweeps", "tracing", "hwmodels", "compiled")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of every program (default: 9)")
    for peer in ("scalesim", "zigzag"):
        parser.add_argument(f"--{peer}", metavar="PYTHON", help=f"for hwmodels: an interpreter that has {peer}")
    parser.add_argument(
        "--without-rebuilt", action="store_true", help="for sweeps: leave out the slow loop that compiles anew"
    )
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark called {unknown}; there are {', '.join(NAMES)}")
    console, figures = Console(width=120), {}
    for name in options.names or NAMES:
        # Imported here and in turn: a benchmark may pin the process to a core before JAX starts its threads.
        extra = {
            "hwmodels": {"scalesim": options.scalesim, "zigzag": options.zigzag},
            "sweeps": {"rebuilt": not options.without_rebuilt},
        }.get(name, {})
        figures[name], table = importlib.import_module(f"benchmarks.{name}").measure(options.repeats, **extra)
        console.print(table)
    text = json.dumps(figures, indent=2)
    if options.json:
        options.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
