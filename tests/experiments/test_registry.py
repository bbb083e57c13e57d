"""The command line: typed settings, results that can be repeated, and mistakes answered in one line."""

import json
import os
import shlex
import sys
import types
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import _registry, _results, _settings
from experiments.__main__ import main
from experiments._errors import UsageError
from experiments._registry import REGISTRY, Context, experiment


@dataclass(frozen=True)
class Config:
    steps: int = 100
    rho: float = 1e-3
    binary: bool = False
    optimizer: str = "adam"
    densities: tuple[float, ...] = (0.2, 0.08)
    shape: tuple[int, int] = (4, 4)

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected at least 1")

    @classmethod
    def quick(cls):
        return cls(steps=3)


@pytest.fixture
def toy(monkeypatch):
    """An experiment that returns what it was given; yields the list of its calls."""
    _registry.discover()  # first, or the package's own experiments would register in the dictionary below
    monkeypatch.setattr(_registry, "REGISTRY", {})
    calls = []

    @experiment("toy-example", paper="Nobody 2020", summary="that runs reach their result")
    def run(config: Config, context: Context) -> dict:
        calls.append((config, context))
        context.console.print("running")
        (context.folder / "plot.png").write_bytes(b"")
        return {"accuracy": np.float32(0.5), "history": jnp.arange(3), "by seed": {0: float("nan")}}

    return calls


def run_toy(tmp_path, *arguments):
    assert main(["run", "toy-example", "--results", str(tmp_path), *arguments]) == 0
    (path,) = tmp_path.glob("toy-example/*/result.json")
    return path, json.loads(path.read_text())


def test_a_run_writes_all_that_is_needed_to_understand_and_repeat_it(toy, tmp_path):
    path, result = run_toy(tmp_path, "--seeds", "2", "--set", "rho=0.5", "densities=0.1,0.2")
    assert result["experiment"] == "toy-example" and result["data"] == "digits" and result["seeds"] == [0, 1]
    assert result["config"]["rho"] == 0.5 and result["config"]["densities"] == [0.1, 0.2]
    assert result["metrics"] == {"accuracy": 0.5, "history": [0, 1, 2], "by seed": {"0": "nan"}}
    assert {"python", "jax", "jaxlib", "flax", "optax", "numpy", "jaxcomp"} == set(result["versions"])
    assert result["platform"]["cpu_count"] == os.cpu_count() and result["seconds"] >= 0
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["plot.png", "result.json"]


def test_the_experiment_is_given_its_config_and_its_context(toy, tmp_path):
    path, _ = run_toy(tmp_path, "--quick", "--set", "binary=true")
    ((config, context),) = toy
    assert config == replace(Config.quick(), binary=True)
    assert context.folder == path.parent and context.seeds == (0,) and context.quick
    assert context.data.name == "digits"


@pytest.mark.parametrize("arguments", [[], ["--quick", "--seeds", "3", "--set", "shape=2,8", "optimizer=a b"]])
def test_the_recorded_command_repeats_the_run_into_the_same_folder(toy, tmp_path, arguments):
    path, result = run_toy(tmp_path, *arguments)
    program, command = shlex.split(result["command"])[:3], shlex.split(result["command"])[3:]
    assert program == ["python", "-m", "experiments"]
    assert main([*command, "--results", str(tmp_path)]) == 0
    assert toy[0][0] == toy[1][0] and toy[0][1].folder == toy[1][1].folder == path.parent


def test_different_configs_data_and_seeds_have_different_hashes(toy):
    base = dict(experiment=_registry.find("toy-example"), config=Config(), data="digits", seeds=(0,), quick=False)
    others = [{}, {"config": Config(rho=0.1)}, {"data": "mnist"}, {"seeds": (0, 1)}, {"quick": True}]
    hashes = [_results.Run(**base | other).hash for other in others]
    assert len(set(hashes)) == len(others)
    assert all(len(each) == 10 and int(each, 16) >= 0 for each in hashes)
    assert hashes[0] == "43ef103377"  # another value here would orphan the results that people have stored


def test_a_result_is_never_left_half_written(toy, tmp_path, monkeypatch):
    path, _ = run_toy(tmp_path)
    before = path.read_text()
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        main(["run", "toy-example", "--results", str(tmp_path)])
    assert path.read_text() == before


def test_list_shows_each_experiment_with_its_paper_summary_and_data(toy, capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("toy-example", "Nobody 2020", "digits"))


def test_an_unknown_experiment_ends_with_status_2_and_the_nearest_names(toy, capsys):
    assert main(["run", "toy-exmple"]) == 2
    message = capsys.readouterr().err
    assert "'toy-exmple'" in message and "did you mean toy-example?" in message and "Traceback" not in message


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("roh=1", ["no field 'roh'", "did you mean rho?", "steps=100", "densities=0.2,0.08"]),
        ("rho", ["expected key=value"]),
        ("steps=1.5", ["steps is '1.5'", "expected an integer"]),
        ("rho=large", ["rho is 'large'", "expected a finite number"]),
        ("rho=nan", ["rho is 'nan'", "expected a finite number"]),
        ("binary=1", ["binary is '1'", "expected true or false"]),
        (
            "densities=0.1,x",
            ["densities is '0.1,x'", "expected values separated by commas, each a finite number"],
        ),
        ("shape=1,2,3", ["shape is '1,2,3'", "expected 2 values separated by commas, each an integer"]),
        ("steps=0", ["steps is 0, expected at least 1"]),
    ],
)
def test_a_wrong_setting_ends_with_status_2_and_says_what_was_expected(toy, tmp_path, capsys, setting, parts):
    assert main(["run", "toy-example", "--results", str(tmp_path), "--set", setting]) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in [setting, *parts]), message
    assert not toy and not list(tmp_path.iterdir())


def test_a_wrong_data_folder_ends_with_status_2_before_anything_is_run_or_written(toy, tmp_path, capsys):
    results = tmp_path / "results"
    arguments = ["--data", "mnist", "--data-dir", str(tmp_path), "--results", str(results)]
    assert main(["run", "toy-example", *arguments]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not toy and not results.exists()


@given(
    st.builds(
        Config,
        steps=st.integers(1, 10**9),
        rho=st.floats(allow_nan=False, allow_infinity=False),
        binary=st.booleans(),
        optimizer=st.text(st.characters(exclude_categories=["Cs"])),
        densities=st.lists(st.floats(0, 1)).map(tuple),
        shape=st.tuples(st.integers(), st.integers()),
    )
)
def test_the_settings_of_a_config_rebuild_it(config):
    assert _settings.apply(Config(), _settings.changes(config, Config())) == config


def test_registering_one_name_twice_is_an_error(toy):
    with pytest.raises(ValueError, match="'toy-example' is registered twice"):

        @experiment("toy-example", paper="", summary="")
        def run(config: Config, context: Context) -> dict:
            return {}


def test_a_config_that_is_not_a_frozen_dataclass_is_an_error(toy):
    with pytest.raises(TypeError, match="expected a frozen dataclass"):

        @experiment("other", paper="", summary="")
        def run(config: dict, context: Context) -> dict:
            return {}


def test_every_experiment_of_the_package_can_be_found_and_built():
    for each in _registry.discover():
        assert _registry.find(each.name) is each
        for quick in (False, True):
            assert _settings.apply(each.default_config(quick), []) == each.default_config(quick)
    assert "toy-example" not in REGISTRY


def test_an_experiment_that_cannot_be_imported_leaves_the_others_and_says_why(toy, tmp_path, monkeypatch, capsys):
    package = types.ModuleType("experiments")
    package.__path__ = [str(tmp_path)]
    (tmp_path / "two_words.py").write_text("import no_such_package")
    monkeypatch.setitem(sys.modules, "experiments", package)
    monkeypatch.setattr(_registry, "BROKEN", {})
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "toy-example" in shown and "two-words" in shown and "cannot be imported: ModuleNotFoundError" in shown
    assert main(["run", "two-words"]) == 2
    assert "'two-words' cannot be imported: ModuleNotFoundError: No module named 'no_such" in capsys.readouterr().err
    run_toy(tmp_path / "results")


def test_an_experiment_with_data_of_its_own_is_given_none_and_takes_no_choice_of_it(toy, tmp_path, capsys):
    seen = []

    @experiment("own-data", paper="", summary="", data=None)
    def run(config: Config, context: Context) -> dict:
        seen.append(context.data)
        return {}

    assert main(["run", "own-data", "--results", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("own-data/*/result.json")
    result = json.loads(path.read_text())
    assert seen == [None] and result["data"] is None and "--data" not in result["command"]
    assert main(["run", "own-data", "--data", "mnist"]) == 2
    assert "own-data reads data of its own" in capsys.readouterr().err
    assert main(["list"]) == 0 and "its own" in capsys.readouterr().out


def test_find_raises_a_usage_error_even_without_a_near_name():
    with pytest.raises(UsageError, match="experiments list"):
        _registry.find("zzzz")
