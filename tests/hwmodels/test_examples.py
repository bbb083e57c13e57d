"""What the benchmark of hardware models runs: one of every device."""

import inspect

from benchmarks.hwmodels import examples
from jaxcomp import hwmodels


def test_there_is_an_example_of_every_device():
    devices = {name for name, kind in vars(hwmodels).items() if inspect.isclass(kind) and _is_device(kind)}
    assert {name: type(device).__name__ for name, device in examples().items()} == {name: name for name in devices}


def _is_device(kind: type) -> bool:
    return issubclass(kind, hwmodels.Device) and kind is not hwmodels.Device
