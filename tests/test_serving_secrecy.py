"""Plain stays inside: what a host has of predictions is searched for what is secret.

The host is a process of its own, as `vessels serve` starts it, with the model owner's key service
as another. Markers are values put into the inputs, the outputs and the parameters, and the model
key. Searched are the host's memory while it serves and after, the files it has, its logs, and all
traffic. Each search is shown to find what is there.
"""

from __future__ import annotations

import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vessels import api
from vessels.attestation import Policy, new_nonce
from vessels.attestation.fetch import fetch_evidence
from vessels.client import Client
from vessels.demo_serving import Party, is_ready, vessels_command, wait_until
from vessels.errors import RequestError, VesselsError
from vessels.seal import create_key, seal
from vessels.sealed_messages import RequestSealer
from vessels.secrecy import (
    Found,
    Marker,
    Relay,
    markers_of,
    search,
    search_files,
    search_memory,
    search_open_files,
)

Array = np.ndarray[Any, Any]

PREDICTIONS = 40
MODEL = "secretive"
RNG = np.random.default_rng(20261123)
X = RNG.standard_normal((1, 512)).astype(np.float32)
IDS = np.array([71, 3, 58, 96], np.int64)
W = RNG.standard_normal((512, 256)).astype(np.float32)
P = RNG.standard_normal((1, 512)).astype(np.float32)
T = RNG.standard_normal((100, 64)).astype(np.float32)
INPUTS: dict[str, Array] = {"x": X, "ids": IDS}


def secretive_model() -> onnx.ModelProto:
    """A product, a sum and a look-up: ``x`` and ``ids`` to ``y``, ``z`` and ``g``."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "W"], ["y"]),
            helper.make_node("Add", ["x", "P"], ["z"]),
            helper.make_node("Gather", ["T", "ids"], ["g"]),
        ],
        MODEL,
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape),
            helper.make_tensor_value_info("ids", TensorProto.INT64, IDS.shape),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 256]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 512]),
            helper.make_tensor_value_info("g", TensorProto.FLOAT, [4, 64]),
        ],
        [numpy_helper.from_array(a, n) for n, a in (("W", W), ("P", P), ("T", T))],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


def written_out(values: Array) -> list[bytes]:
    """Some of ``values`` as a message or a log might write them."""
    return [text.encode() for v in values.ravel()[:2] for text in (repr(float(v)), str(v))]


class Loopback:
    """All that goes through the loopback interface, while it is listened to."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.05)
        self.packets: list[bytes] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        self._socket.close()

    def search(self, markers: list[Marker]) -> Found:
        """What of ``markers`` is in a packet, or in packets that follow each other."""
        # Headers are between the payloads of a stream; a marker that is cut in one place is
        # whole in others, as there are many.
        return search(b"".join(self.packets), markers)

    def _listen(self) -> None:
        while not self._done.is_set():
            with suppress(TimeoutError):
                self.packets.append(self._socket.recv(1 << 17))


@dataclass
class Stage:
    """What is left when the play is over, with the host still running."""

    markers: list[Marker]
    host: Party
    owner: Party
    folder: Path
    policy: Path
    to_host: Relay
    to_keys: Relay
    outputs: dict[str, Array]
    enclave: int
    watched: Found = field(default_factory=Found)
    """The host's memory while it served."""
    loopback: Loopback | None = None
    answers: list[str] = field(default_factory=list)
    """What clients were told that asked wrongly."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One run of everything: predictions, requests that are refused, and what they leave."""
    folder = tmp_path_factory.mktemp("stage")
    owner_files, host_files, client_files = (folder / n for n in ("owner", "host", "client"))
    for path in (owner_files, host_files, client_files):
        path.mkdir()
    onnx.save(secretive_model(), owner_files / "m.onnx")
    sealed, key_file = host_files / f"{MODEL}.vessel", owner_files / f"{MODEL}.key"
    policy = folder / "policy.toml"
    plan = api.compile_model(owner_files / "m.onnx", threads=1)
    key = create_key(key_file)
    seal(plan, key, sealed)
    markers = [Marker("key", key), Marker("key", key.hex().encode())]
    for values in (W, P, T):
        markers += markers_of("parameters", values.tobytes(), 4)
        markers += [Marker("parameters", text) for text in written_out(values)]
    for index in range(plan.chunk_count):
        markers += markers_of("parameters", plan.chunk(index), 2)
    markers += markers_of("input", X.tobytes(), 4)
    markers += [Marker("input", IDS.tobytes()), *(Marker("input", t) for t in written_out(X))]

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
            patch.setenv(variable, str(host_files / variable))
        _command(["policy", "new", str(sealed), "--insecure-simulation", "-o", str(policy)], folder)
        loopback = None
        with suppress(PermissionError):
            loopback = Loopback()
            stack.callback(loopback.close)
        listen = ["--listen", "127.0.0.1:0", "--log", "json"]
        given = ["--policy", str(policy), "--key", f"{MODEL}={key_file}"]
        owner = stack.enter_context(
            Party.start(vessels_command(["keys", "serve", *given, *listen]), owner_files)
        )
        to_keys = stack.enter_context(_relay_to(owner.url))
        serve = ["serve", str(sealed), "--keys", to_keys.url, *listen]
        host = stack.enter_context(Party.start(vessels_command(serve), host_files))
        wait_until(lambda: is_ready(host.url), host, "ready")
        to_host = stack.enter_context(_relay_to(host.url))
        enclave = _child_of(host.pid)
        with Client(to_host.url, policy=policy) as client:
            outputs = client.predict(MODEL, INPUTS)
            for name, values in outputs.items():
                # What is looked up is a parameter as well.
                kind = "looked up" if name == "g" else "output"
                markers += markers_of(kind, values.tobytes(), 4)
                markers += [Marker(kind, text) for text in written_out(values)]
            found = Stage(
                markers, host, owner, host_files, policy, to_host, to_keys, outputs, enclave,
                loopback=loopback,
            )  # fmt: skip
            with _watching(found):
                for _ in range(PREDICTIONS):
                    client.predict(MODEL, INPUTS)
                found.answers = _refused(client, to_host.url)
        assert _child_of(host.pid) == enclave, "the enclave ended"
        yield found


@contextmanager
def _watching(stage: Stage) -> Iterator[None]:
    """Searches the host's memory again and again meanwhile, for one marker of each kind."""
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            stage.watched.add(search_memory(stage.host.pid, one_each(stage.markers)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _refused(client: Client, url: str) -> list[str]:
    """What is said to requests that hold the secret input and are wrong."""
    said: list[str] = []
    wrongs: list[dict[str, Array]] = [
        {"x": X, "ids": np.array([71, 3, 58, 100], np.int64)},
        {"x": X[:, :100], "ids": IDS},
        {"x": X.astype(np.float64), "ids": IDS},
        {"x": X},
        {"x": X, "ids": IDS, "other": X},
    ]
    for wrong in wrongs:
        with pytest.raises(RequestError) as refusal:
            client.predict(MODEL, wrong)
        said.append(str(refusal.value))
    claims = fetch_evidence(url, MODEL, new_nonce()).claims
    wrongs = [{"x": X[:, :100], "ids": IDS}, {"x": X, "wrong": IDS}]
    for inputs in wrongs:
        # Past the client's own check: refused inside, and answered sealed.
        sealer = RequestSealer(claims.public_key, claims.model_digest)
        body, opener = sealer.seal_predict(inputs)
        with pytest.raises(RequestError) as refusal:
            opener.open(_post(url, body))
        said.append(str(refusal.value))
    body, _ = RequestSealer(claims.public_key, claims.model_digest).seal_predict(INPUTS)
    for damaged in (body[:-1], body[:100], bytes([body[0] ^ 1]) + body[1:], body + b"\0"):
        with pytest.raises(urllib.error.HTTPError) as error:
            _post(url, damaged)
        said.append(error.value.read().decode())
    return said


def _post(url: str, body: bytes) -> bytes:
    request = urllib.request.Request(
        f"{url}/vessels/v1/models/{MODEL}/predict", body,
        {"Content-Type": "application/octet-stream"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=30) as answer:
        said: bytes = answer.read()
    return said


def _relay_to(url: str) -> Relay:
    host, port = url.removeprefix("http://").split(":")
    return Relay(host, int(port))


def _child_of(pid: int) -> int:
    """The one child process of ``pid``: the enclave."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    [child] = [int(c) for task in tasks for c in task.read_text().split()]
    return child


def _command(arguments: list[str], folder: Path) -> None:
    with Party.start(vessels_command(list(arguments)), folder) as party:
        wait_until(lambda: party.ended, party, "done")
        party.check()


def of(stage: Stage, *kinds: str) -> list[Marker]:
    """The markers of some kinds."""
    return [m for m in stage.markers if m.kind in kinds]


def one_each(markers: list[Marker]) -> list[Marker]:
    """The first marker of each kind."""
    return list({m.kind: m for m in reversed(markers)}.values())


def nowhere(found: Found, least: int) -> None:
    """Nothing was found, in no less than ``least`` bytes."""
    assert found.size >= least
    assert found.total == 0, found.counts


def test_the_answers_are_right(stage: Stage) -> None:
    np.testing.assert_allclose(stage.outputs["y"], X @ W, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(stage.outputs["z"], X + P)
    np.testing.assert_array_equal(stage.outputs["g"], T[IDS])


def test_the_search_finds_what_is_there(stage: Stage) -> None:
    # This process is the client, and it made the model.
    kept = [X, W, P, T, *stage.outputs.values()]
    own = search_memory(os.getpid(), one_each(stage.markers))
    assert own.counts.keys() == {"key", "parameters", "input", "output", "looked up"}
    assert all(own.counts.values()), f"{own.counts} of {len(kept)} arrays"
    owners = search_files([stage.folder.parent / "owner"], stage.markers)
    assert owners.counts["key"] and owners.counts["parameters"]


def test_memory_of_the_host(stage: Stage) -> None:
    nowhere(search_memory(stage.host.pid, stage.markers), 10 << 20)


def test_memory_of_the_host_while_it_serves(stage: Stage) -> None:
    nowhere(stage.watched, 10 << 20)


def test_files_and_logs_of_the_host(stage: Stage) -> None:
    assert stage.host.log.is_relative_to(stage.folder)
    said = stage.host.log.read_text()
    # The log is one: it tells of the predictions and of the refusals.
    assert MODEL in said and "refused" in said
    nowhere(search_files([stage.folder], stage.markers), W.nbytes)
    nowhere(search_open_files(stage.host.pid, stage.markers), 1)


def test_traffic(stage: Stage) -> None:
    # Every request and every answer has been seen, and none could be read.
    least = (PREDICTIONS + 1) * (X.nbytes + sum(v.nbytes for v in stage.outputs.values()))
    nowhere(stage.to_host.search(stage.markers), least)
    nowhere(stage.to_keys.search(stage.markers), 1000)


def test_everything_on_loopback(stage: Stage) -> None:
    if stage.loopback is None:
        pytest.skip("only root may listen to an interface; the relays have seen the same")
    least = (PREDICTIONS + 1) * X.nbytes
    nowhere(stage.loopback.search(stage.markers), least)
    public = Marker("public", f"/vessels/v1/models/{MODEL}/predict".encode())
    assert stage.loopback.search([public]).counts["public"] > PREDICTIONS


def test_what_clients_are_told_when_they_are_wrong(stage: Stage) -> None:
    assert len(stage.answers) == 11
    for answer in stage.answers:
        nowhere(search(answer.encode(), stage.markers), 10)


def test_the_enclave_forgets_requests_and_key(stage: Stage) -> None:
    """Its memory is its own; but what has been answered is not to wait there for a mistake."""
    try:
        found = search_memory(stage.enclave, of(stage, "input", "output", "key"))
    except VesselsError:
        pytest.skip("this user cannot read the enclave's memory, as it should be")
    assert found.counts == {"input": 0, "output": 0, "key": 0}
    # What it has to keep is found.
    assert search_memory(stage.enclave, of(stage, "parameters", "looked up")).total


def test_the_hosts_own_model_is_not_one_it_can_open(stage: Stage) -> None:
    """The host has the sealed model and the policy; both are public to it."""
    assert Policy.load(stage.policy).models.keys() == {MODEL}
    with pytest.raises(Exception, match="key"):
        api.inspect(stage.folder / f"{MODEL}.vessel", key=bytes(32))
