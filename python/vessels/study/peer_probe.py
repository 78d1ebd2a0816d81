"""A program, not a module: times ONNX Runtime's predictions, one JSON line each.

Started by :mod:`vessels.study.peer` as ``peer_probe.py MODEL.onnx INPUTS.npz THREADS``. It imports
its libraries and reads its inputs, prints ``{"ready": true}`` and waits for a line: meanwhile it is
put in its cgroup, which then holds the model alone. It predicts once for each line, the first time
unasked, says how long it took, and ends when its standard input does. It imports nothing of
Vessels, so that only ONNX Runtime is measured.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import onnxruntime


def say(**what: Any) -> None:
    """One line on standard output."""
    print(json.dumps(what), flush=True)


def main() -> None:
    model, archive, threads = sys.argv[1:]
    with np.load(archive) as stored:
        inputs = {name: stored[name] for name in stored.files}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    say(ready=True)
    if not sys.stdin.readline():
        return
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    say(loaded=True)
    while True:
        start = time.perf_counter()
        session.run(None, inputs)
        say(milliseconds=(time.perf_counter() - start) * 1e3)
        if not sys.stdin.readline():
            return


if __name__ == "__main__":
    main()
