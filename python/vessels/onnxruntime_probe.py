"""A program, not a module: prints how much peak memory ONNX Runtime needs for a model.

Started in a fresh process by :func:`vessels.memory.onnxruntime_memory` as
``onnxruntime_probe.py MODEL.onnx INPUTS.npz THREADS``. It imports nothing of Vessels, so that
only ONNX Runtime is measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def peak_rss() -> int:
    """The peak resident memory of this process in bytes (``VmHWM``)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def main() -> None:
    model, archive, threads = sys.argv[1:]
    with np.load(archive) as stored:
        inputs = {name: stored[name] for name in stored.files}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Sets the peak back to what is resident now, so that importing does not hide the growth.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_rss()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    session.run(None, inputs)
    print(json.dumps({"before": before, "growth": peak_rss() - before}))


if __name__ == "__main__":
    main()
