"""Run by an interpreter that has SCALE-Sim: seconds and cycles of one convolution on a 32 x 32 array, as JSON."""

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

CONFIG = """
[general]
run_name = one

[architecture_presets]
ArrayHeight: 32
ArrayWidth: 32
IfmapSramSzkB: 64
FilterSramSzkB: 64
OfmapSramSzkB: 64
IfmapOffset: 0
FilterOffset: 10000000
OfmapOffset: 20000000
Dataflow: ws
Bandwidth: 10
ReadRequestBuffer: 32
WriteRequestBuffer: 32

[layout]
IfmapCustomLayout: False
FilterCustomLayout: False
IfmapSRAMBankBandwidth: 10
IfmapSRAMBankNum: 10
IfmapSRAMBankPort: 2
FilterSRAMBankBandwidth: 10
FilterSRAMBankNum: 10
FilterSRAMBankPort: 2

[sparsity]
SparsitySupport: false

[run_presets]
InterfaceBandwidth: CALC
UseRamulatorTrace: False
"""
LAYER = """Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,
{name}, {inside}, {inside}, {kernel}, {kernel}, {inputs}, {outputs}, {stride},
"""
LAYOUT = "Layer name\none," + " 1," * 20 + "\n"


def main() -> None:
    from scalesim.scale_sim import scalesim

    layer = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in (("one.cfg", CONFIG), ("one.csv", LAYER.format(**layer)), ("layout.csv", LAYOUT)):
            (folder / file).write_text(text)
        files = (folder / "one.cfg", folder / "one.csv", folder / "layout.csv")
        config, topology, layout = map(str, files)
        with contextlib.redirect_stdout(sys.stderr):
            run = scalesim(True, False, config, topology, layout)
            start = time.perf_counter()
            run.run_scale(top_path=str(folder))
            seconds = time.perf_counter() - start
        cycles = run.runner.single_layer_sim_object_list[0].get_compute_report_items()
    print(json.dumps({"seconds": seconds, "cycles": int(cycles[0])}))


if __name__ == "__main__":
    main()
