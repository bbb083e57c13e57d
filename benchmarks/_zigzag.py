"""Run by an interpreter that has ZigZag: seconds, cycles, energy of one convolution on its TPU example, as JSON."""

import contextlib
import json
import logging
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    import zigzag
    from zigzag.api import get_hardware_performance_zigzag

    layer, inputs = json.loads(sys.argv[1]), Path(zigzag.__file__).parent / "inputs"
    out = (layer["inside"] - layer["kernel"]) // layer["stride"] + 1
    workload = [
        {
            "id": 0,
            "name": layer["name"],
            "operator_type": "Conv",
            "equation": "O[b][k][oy][ox]+=W[k][c][fy][fx]*I[b][c][iy][ix]",
            "dimension_relations": [f"ix={layer['stride']}*ox+1*fx", f"iy={layer['stride']}*oy+1*fy"],
            "loop_dims": ["B", "K", "C", "OY", "OX", "FY", "FX"],
            "loop_sizes": [1, layer["outputs"], layer["inputs"], out, out, layer["kernel"], layer["kernel"]],
            "operand_precision": {"W": 8, "I": 8, "O": 16, "O_final": 8},
            "operand_source": {"I": 0, "W": 0},
        }
    ]
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        start = time.perf_counter()
        energy, latency, _ = get_hardware_performance_zigzag(
            workload,
            str(inputs / "hardware" / "tpu_like.yaml"),
            str(inputs / "mapping" / "tpu_like.yaml"),
            dump_folder=folder,
            pickle_filename=str(Path(folder) / "found.pickle"),
            loma_show_progress_bar=False,
        )
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "cycles": float(latency), "energy_pj": float(energy)}))


if __name__ == "__main__":
    main()
