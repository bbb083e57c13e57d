"""Leaves that lie on several devices, or on those of several processes, as if they lay on one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tests.sharded import checks

# What is given away was copied by the XLA of before: a device took two shares.
SPARING = jax.__version_info__ >= (0, 10)
THOROUGH = [check for check in checks.CHECKS if check not in checks.QUICK]
ROOT = Path(__file__).resolve().parents[1]


def marked(names):
    skipped = [] if SPARING else [pytest.mark.skip("older XLA")]
    return [pytest.param(check, marks=skipped if check.startswith("400 mb") else []) for check in names]


def start(module, *arguments):
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    command = [sys.executable, "-m", f"tests.sharded.{module}", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def printed(process):
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err.decode()[-3000:]
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def quick():
    return printed(start("checks", *checks.QUICK))


@pytest.fixture(scope="module")
def thorough():
    return printed(start("checks", *THOROUGH))


@pytest.mark.parametrize("check", marked(checks.QUICK))
def test_on_eight_devices(quick, check):
    assert not quick[check], quick[check]


@pytest.mark.slow
@pytest.mark.parametrize("check", marked(THOROUGH))
def test_on_eight_devices_thoroughly(thorough, check):
    assert not thorough[check], thorough[check]


@pytest.mark.slow
def test_on_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [start("two_processes", f"localhost:{port}", process, tmp_path) for process in range(2)]
    for process in both:
        found = printed(process)
        assert not any(found.values()), "\n".join(found.values())
