"""A server that is killed: its enclaves are gone at once, in the middle of a run, too."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import onnx
from onnx import helper

import vessels
from benchmarks.machine import core_seconds
from tests.serving import PATIENCE, until
from tests.test_lifeline import ends
from tests.test_serve_cli import get, served
from vessels.attestation import Evidence, new_nonce
from vessels.sealed_messages import RequestSealer

ORDER = 2048
PRODUCTS = 96


def slow_model() -> onnx.ModelProto:
    """Products of large matrices, one after the other: some seconds for one core."""
    seed = helper.make_tensor_value_info("seed", onnx.TensorProto.FLOAT, [ORDER, 1])
    mean = helper.make_tensor_value_info("mean", onnx.TensorProto.FLOAT, [1, 1])
    nodes = [
        helper.make_node("Transpose", ["seed"], ["row"]),
        helper.make_node("MatMul", ["seed", "row"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{i}"] * 2, [f"m{i + 1}"]) for i in range(PRODUCTS)),
        helper.make_node("ReduceMean", [f"m{PRODUCTS}"], ["mean"], axes=[0, 1]),
    ]
    graph = helper.make_graph(nodes, "slow", [seed], [mean])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_enclaves_end_in_the_middle_of_a_run(tmp_path: Path, home: None) -> None:
    path, key = tmp_path / "slow.vessel", tmp_path / "slow.key"
    vessels.build(slow_model(), path, key=key, threads=1)
    with served(tmp_path, path, "--insecure-key", key) as server, ThreadPoolExecutor(1) as client:
        server.await_event("model_ready")
        url = f"{server.await_event('serving')['url']}/vessels/v1/models/slow"
        enclave = server.await_event("enclave_started")["pid"]
        nonce = new_nonce().hex()
        claims = Evidence.decode(get(f"{url}/evidence?nonce={nonce}").content).claims
        sealer = RequestSealer(claims.public_key, claims.model_digest)
        body, _ = sealer.seal_predict({"seed": np.zeros((ORDER, 1), np.float32)})
        before = core_seconds(enclave)
        answer = client.submit(httpx2.post, f"{url}/predict", content=body, timeout=PATIENCE)
        until(lambda: core_seconds(enclave) > before + 0.2, "a run")
        assert not answer.done()
        handle = os.pidfd_open(enclave)
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        # The run would go on for longer.
        assert ends(handle, 5)
        os.close(handle)
        assert isinstance(answer.exception(PATIENCE), httpx2.HTTPError)
