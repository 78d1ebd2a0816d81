"""Serving on a Ray cluster of several nodes: environments found, lost, waited for and added."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("ray", reason="Ray is not installed: pip install 'vessels[ray]'")

import httpx2
from ray import serve

import vessels
from tests.attestation import rules_of
from tests.cluster_running import PATIENCE, Nodes, deployed, enclaves, is_ready, nodes, until
from tests.conftest import Sealed
from vessels import Client, Enclave
from vessels.attestation import Evidence, Policy, model_digest, new_nonce
from vessels.cluster.config import ClusterConfig
from vessels.cluster.need import need_of
from vessels.errors import ServerError
from vessels.predict_headers import identity_of
from vessels.sealed_messages import RequestSealer

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def cluster(sealed: Sealed, home: None) -> Iterator[Nodes]:
    """Two nodes with room for one environment of the small model each."""
    size = need_of(sealed.vessel, threads=1).epc_mib
    with nodes(size, size) as made:
        yield made


@dataclass
class Model:
    """A model, one of its inputs, and what it answers."""

    path: Path
    key: Path
    image: Any
    expected: Any

    def config(self, fewest: int, most: int, **more: Any) -> ClusterConfig:
        model = {
            "name": "m", "path": self.path, "threads": 1, "replicas": (fewest, most),
            "busy_count": more.pop("busy_count", 4),
            # None is refused because this machine has other work.
            "deadline_ms": 60_000,
        }  # fmt: skip
        return ClusterConfig.model_validate(
            {"models": [model], "insecure_keys": [self.key], **more}
        )

    def rules(self) -> Policy:
        return rules_of(self.path)

    def enclaves(self) -> set[int]:
        """The processes that hold it."""
        return enclaves(self.path)


def answers(path: Path, key: Path, image: Any) -> Model:
    with Enclave(path, key=key) as enclave:
        return Model(path, key, image, enclave.run({"image": image}))


@pytest.fixture(scope="module")
def small(sealed: Sealed, home: None) -> Model:
    return answers(sealed.vessel, sealed.key, np.load(sealed.image))


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, home: None) -> Model:
    """Eight convolutions, which take some tens of milliseconds."""
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((64, 64, 3, 3)).astype(np.float32) / 24
    shape = [1, 64, 64, 64]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", [f"x{i}" if i else "image", "w"], [f"x{i + 1}"], pads=[1] * 4)
            for i in range(8)
        ],
        "slow",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("x8", onnx.TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights, "w")],
    )
    folder = tmp_path_factory.mktemp("slow")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "m.onnx")
    vessels.build(folder / "m.onnx", folder / "m.vessel", key=folder / "m.key")
    image = rng.standard_normal(shape).astype(np.float32)
    return answers(folder / "m.vessel", folder / "m.key", image)


def parent(pid: int) -> int:
    """The process that started ``pid``."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("PPid:")).split()[1])


def busiest(enclaves: set[int]) -> int:
    """The one that works most just now."""
    before = {pid: ticks(pid) for pid in enclaves}
    time.sleep(0.3)
    return max(enclaves, key=lambda pid: ticks(pid) - before[pid])


def ticks(pid: int) -> int:
    """Processor time of ``pid``."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def running() -> int:
    """How many environments Serve says run."""
    status = serve.status().applications["vessels"].deployments["m"]
    return sum(n for state, n in status.replica_states.items() if state == "RUNNING")


@dataclass
class Load:
    """What came of requests that were sent one after the other by several clients."""

    outcomes: Counter[str] = field(default_factory=Counter)
    keys: set[bytes] = field(default_factory=set)
    sent: int = 0


@contextmanager
def load(url: str, model: Model, client_count: int) -> Iterator[Load]:
    """Clients that ask all the time; each of their requests has an outcome."""
    seen = Load()
    lock = threading.Lock()
    stop = threading.Event()
    rules = model.rules()

    def ask() -> None:
        with Client(url, policy=rules, timeout=PATIENCE) as client:
            while not stop.is_set():
                with lock:
                    seen.sent += 1
                try:
                    outputs, attested = client.predict_attested("m", {"image": model.image})
                    right = all(np.array_equal(outputs[n], a) for n, a in model.expected.items())
                    outcome = "right" if right else "wrong"
                    with lock:
                        seen.keys.add(attested.verified.claims.public_key)
                except ServerError as error:
                    outcome = error.code or str(error)
                    time.sleep(0.1)
                with lock:
                    seen.outcomes[outcome] += 1

    threads = [threading.Thread(target=ask) for _ in range(client_count)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a request has no outcome"


def test_what_is_sealed_to_an_environment_reaches_it(cluster: Nodes, small: Model) -> None:
    with deployed(cluster, small.config(2, 2)) as url:
        until(lambda: running() == 2, "two environments")
        path = f"{url}/vessels/v1/models/m"
        keys: set[bytes] = set()

        def proven() -> int:
            answer = httpx2.get(f"{path}/evidence?nonce={new_nonce().hex()}", timeout=PATIENCE)
            # Who has just ended may be asked still.
            if answer.status_code == 200:
                keys.add(Evidence.decode(answer.content).claims.public_key)
            return len(keys)

        until(lambda: proven() == 2, "evidence of both")
        digest = model_digest(small.path)

        def ask(key: bytes) -> int:
            request, opener = RequestSealer(key, digest).seal_predict({"image": small.image})
            answer = httpx2.post(
                f"{path}/predict", content=request, timeout=PATIENCE,
                headers={"vessels-environment": identity_of(key)},
            )  # fmt: skip
            if answer.status_code == 200:
                found = opener.open(answer.content)
                assert np.array_equal(found["scores"], small.expected["scores"])
            return int(answer.status_code)

        assert [ask(key) for _ in range(25) for key in sorted(keys)] == [200] * 50

        # One enclave dies: what is sealed to it finds nobody, the other goes on.
        before = small.enclaves()
        assert len(before) == 2
        os.kill(min(before), signal.SIGKILL)
        told = {key: [ask(key) for _ in range(10)] for key in sorted(keys)}
        [lost] = [key for key in keys if told[key] != [200] * 10]
        assert set(told[lost]) <= {421, 503}
        # Its place is taken by one with another key.
        until(lambda: running() == 2 and len(small.enclaves()) == 2, "another")
        until(lambda: proven() == 3, "its evidence")
        assert ask(lost) == 421
        assert [ask(key) for key in keys - {lost}] == [200, 200]


def test_nothing_is_lost_with_a_replica_or_a_node(cluster: Nodes, slow: Model) -> None:
    need = need_of(slow.path, threads=1).epc_mib
    roomy = [cluster.add(need), cluster.add(need)]

    def whole() -> bool:
        return running() == 2 and len(slow.enclaves()) == 2

    with deployed(cluster, slow.config(2, 2)) as url:
        until(whole, "two environments")
        with load(url, slow, 6) as seen:

            def answered(count: int, what: str) -> None:
                enough = seen.outcomes["right"] + count
                until(lambda: seen.outcomes["right"] >= enough, what)

            answered(50, "answers")
            # A replica, which is the parent of its enclave. That has requests.
            lost = busiest(slow.enclaves())
            os.kill(parent(lost), signal.SIGKILL)
            until(lambda: lost not in slow.enclaves(), "the end of its enclave")
            until(whole, "another in its place")
            answered(50, "answers of both")
            # A node, and with it its enclave.
            cluster.kill(roomy.pop(0))
            until(lambda: len(slow.enclaves()) == 1, "the end of its enclave")
            answered(50, "answers of the other node")
            roomy.append(cluster.add(need))
            until(whole, "capacity again")
            answered(50, "answers of both nodes")
        assert sum(seen.outcomes.values()) == seen.sent
        # What was in an enclave that ended has its error; all else is right.
        errors = set(seen.outcomes) - {"right"}
        assert "enclave_ended" in errors, seen.outcomes
        assert errors <= {"enclave_ended", "not_opened", "not_ready", "no_evidence"}, seen.outcomes
        assert seen.outcomes["right"] > 4 * (seen.sent - seen.outcomes["right"]), seen.outcomes
    for node in roomy:
        cluster.kill(node)


def test_an_environment_waits_for_a_node_with_room(cluster: Nodes, slow: Model) -> None:
    need = need_of(slow.path, threads=1).epc_mib
    with deployed(cluster, slow.config(1, 1, start_seconds=2), ready=False) as url:

        def told() -> str:
            return str(serve.status().applications["vessels"].deployments["m"].message)

        until(lambda: "epc_mib" in told(), "a word on what it waits for")
        assert f'"epc_mib": {need}' in told() or f"'epc_mib': {need}" in told(), told()
        answer = httpx2.get(
            f"{url}/vessels/v1/models/m/evidence?nonce={new_nonce().hex()}", timeout=60
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert int(answer.headers["retry-after"]) >= 1
        assert not is_ready(url, "m")
        roomy = cluster.add(need)
        until(lambda: is_ready(url, "m"), "it to start on the new node")
        with Client(url, policy=slow.rules()) as client:
            client.predict("m", {"image": slow.image})
    cluster.kill(roomy)


def test_a_busy_model_gets_a_further_environment(cluster: Nodes, slow: Model) -> None:
    need = need_of(slow.path, threads=1).epc_mib
    roomy = [cluster.add(need), cluster.add(need)]
    config = slow.config(0, 2, busy_count=1.5, scale_up_seconds=0.5, start_seconds=PATIENCE)
    with deployed(cluster, config, ready=False) as url:
        # None until somebody asks, which who watches does not.
        assert is_ready(url, "m") and is_ready(url)
        assert running() == 0
        with load(url, slow, 6) as seen:
            until(lambda: seen.outcomes["right"] >= 1, "the first")
            until(lambda: running() == 2, "a second environment")
            # Clients that have one already find the new one, too.
            until(lambda: len(seen.keys) == 2, "its share of the work")
        assert set(seen.outcomes) == {"right"}, seen.outcomes
        assert sum(seen.outcomes.values()) == seen.sent
    for node in roomy:
        cluster.kill(node)
