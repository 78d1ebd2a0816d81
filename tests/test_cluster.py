"""Serving on a Ray cluster, without nodes that die: needs, configuration, routing, one node."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

pytest.importorskip("ray", reason="Ray is not installed: pip install 'vessels[ray]'")

import httpx2
from pydantic import ValidationError
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.request_router import PendingRequest

from tests.attestation import policy
from tests.cluster_running import deployed, nodes
from tests.conftest import Sealed
from tests.proxy_running import running_proxy
from vessels import Client, Enclave
from vessels.attestation import Policy, model_digest
from vessels.attestation.simulation import Enclave as Measured
from vessels.attestation.simulation import SimulationRoot
from vessels.cli import app as command_line
from vessels.cluster.config import ClusterConfig
from vessels.cluster.ingress import _not_taken
from vessels.cluster.need import MIB, Need, largest_node, need_of, resources_argument, shortage
from vessels.cluster.router import EnvironmentRouter, share_to_move
from vessels.enclave import find_enclave_binary
from vessels.schedule.model import Shape
from vessels.serve.errors import Code


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user's own state, with the simulation's root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="module")
def rules(sealed: Sealed, home: None) -> Policy:
    measured = Measured.of_binary(find_enclave_binary())
    return policy(
        models={"m": [model_digest(sealed.vessel).hex()]},
        sgx={"mr_enclave": [measured.mr_enclave.hex()]},
        root=SimulationRoot.load_or_create(),
    )


@pytest.fixture(scope="module")
def image(sealed: Sealed) -> Any:
    return np.load(sealed.image)


@pytest.fixture(scope="module")
def expected(sealed: Sealed, image: Any) -> Any:
    with Enclave(sealed.vessel, key=sealed.key) as enclave:
        return enclave.run({"image": image})["scores"]


# What is asked of nodes.


@given(st.lists(st.integers(1, 1 << 34), max_size=20), st.integers(0, 1 << 38))
def test_what_ray_places_on_a_node_fits_it(sizes: list[int], epc_size: int) -> None:
    capacity = json.loads(resources_argument(epc_size))["epc_mib"]
    assert capacity * MIB <= epc_size
    placed = 0
    taken = 0
    for size in sizes:
        need = Need(Shape(0, 1, 1, size))
        if placed + need.epc_mib <= capacity:
            placed += need.epc_mib
            taken += size
    assert taken <= epc_size


def test_an_environment_needs_its_pool_and_its_process(sealed: Sealed) -> None:
    one, two = (need_of(sealed.vessel, threads=t) for t in (1, 2))
    assert one.thread_count == 1
    assert two == need_of(sealed.vessel)
    with Enclave(sealed.vessel, key=sealed.key, threads=1) as enclave:
        enclave.run({"image": np.load(sealed.image)})
        assert enclave.ready.pool_size < enclave.memory().trusted <= one.size


def test_a_shortage_is_told_with_its_figure() -> None:
    nodes = [
        {"Alive": True, "Resources": {"epc_mib": 93.0}},
        {"Alive": True, "Resources": {"CPU": 8.0}},
        {"Alive": False, "Resources": {"epc_mib": 512.0}},
    ]
    most = largest_node(nodes)
    assert most == 93
    assert shortage("m", Need(Shape(0, 1, 1, 93 * MIB)), most) is None
    told = shortage("m", Need(Shape(0, 1, 1, 93 * MIB + 1)), most)
    assert told is not None and "epc_mib=94" in told and "the largest has 93" in told
    assert "none has any" in str(shortage("m", Need(Shape(0, 1, 1, 1)), largest_node([])))


def test_the_command_line_tells_needs_and_resources(sealed: Sealed) -> None:
    runner = CliRunner()
    told = runner.invoke(command_line, ["cluster", "resources", "--epc", "93.9MiB"])
    assert (told.exit_code, json.loads(told.stdout)) == (0, {"epc_mib": 93})
    told = runner.invoke(command_line, ["cluster", "need", "--json", str(sealed.vessel)])
    [row] = json.loads(told.stdout)
    assert row["epc_mib"] == need_of(sealed.vessel).epc_mib


# Configuration.


def test_configuration_from_a_command_line() -> None:
    config = ClusterConfig.model_validate(
        {"models": "a=/x/y.vessel,/z/b.vessel", "keys": "http://k"}
    )
    assert [(m.name, m.path) for m in config.models] == [
        ("a", Path("/x/y.vessel")), ("b", Path("/z/b.vessel")),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": "a=x", "keys": "http://k", "colour": "red"},
        {"models": "a=x"},
        {"models": "a=x", "keys": "http://k", "insecure_keys": "k"},
        {"models": "a=x,a=y", "keys": "http://k"},
        {"models": "a/b=x", "keys": "http://k"},
        {"models": [], "keys": "http://k"},
        {"models": [{"name": "a", "path": "x", "replicas": [3, 2]}], "keys": "http://k"},
        {"models": "a=x", "keys": "http://k", "backend": "gramine"},
    ],
)
def test_configurations_that_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ClusterConfig.model_validate(wrong)


# Routing.


@given(st.integers(0, 1000), st.lists(st.integers(0, 1000), max_size=8))
def test_only_what_evens_the_load_out_moves(load: int, others: list[int]) -> None:
    share = share_to_move(load, others)
    assert 0 <= share < 1
    if share:
        assert 2 * min(others) < load
        assert load * (1 - share) == pytest.approx((load + sum(others)) / (1 + len(others)))


def chosen(
    router: EnvironmentRouter, held: list[Any], method: str = "predict", **arguments: str
) -> list[Any]:
    async def choose() -> list[Any]:
        metadata: Any = SimpleNamespace(call_method=method)
        pending = PendingRequest([], dict(arguments), metadata)
        found = await router.choose_replicas(held, pending)
        # Else Serve would ask again without a pause.
        assert pending.routing_context.should_backoff
        [rank] = found
        return list(rank)

    return asyncio.run(choose())


def test_a_request_goes_to_the_holder_of_its_environment() -> None:
    deployment = DeploymentID("m", "vessels")
    router = EnvironmentRouter(deployment, DeploymentHandleSource.REPLICA)
    router.initialize_state()
    held: list[Any] = [
        SimpleNamespace(
            replica_id=ReplicaID(str(i), deployment), replica_metadata={"environment": f"{i:016x}"}
        )
        for i in range(4)
    ]
    for one in held:
        environment = one.replica_metadata["environment"]
        assert chosen(router, held, environment=environment) == [one]
    # Gone, or none: anybody.
    for arguments in ({"environment": "ff" * 8}, {}):
        assert sorted(map(id, chosen(router, held, **arguments))) == sorted(map(id, held))
    # A busy one passes some on, and to the least busy.
    for one, count in zip(held, (40, 9, 2, 9), strict=True):
        router.replica_queue_len_cache.update(one.replica_id, count)
    wanted = held[0].replica_metadata["environment"]
    seen = [chosen(router, held, environment=wanted)[0] for _ in range(200)]
    assert {one.replica_id for one in seen} == {held[0].replica_id, held[2].replica_id}
    # Who is sent elsewhere is not sent back, nor on from where it was sent.
    for _ in range(20):
        assert {id(one) for one in chosen(router, held, "evidence")} == {id(r) for r in held[1:]}
    proof: Any = SimpleNamespace(metadata=SimpleNamespace(call_method="evidence"))
    router.on_request_routed(proof, held[0].replica_id, None)
    assert all(chosen(router, held, environment=wanted) == [held[0]] for _ in range(50))


def test_what_serve_does_not_take_is_told_in_our_words() -> None:
    full = _not_taken("m", BackPressureError(9, 9))
    assert (full.status, full.code, full.headers["retry-after"]) == (429, Code.OVERLOADED, "1")
    gone = _not_taken("m", DeploymentUnavailableError(DeploymentID("m", "vessels")))
    assert (gone.status, gone.code) == (503, Code.NOT_READY)


# On a cluster of one node.


def test_a_cluster_serves_the_same_interface(
    sealed: Sealed, rules: Policy, image: Any, expected: Any
) -> None:
    config = ClusterConfig.model_validate(
        {
            "models": [{"name": "m", "path": sealed.vessel, "threads": 1}],
            "insecure_keys": [sealed.key],
        }
    )
    with (
        nodes(head_epc_mib=16) as cluster,
        deployed(cluster, config) as url,
        Client(url, policy=rules) as client,
    ):
        for _ in range(3):
            assert np.array_equal(client.predict("m", {"image": image})["scores"], expected)
        assert client.ready("m")
        with (
            running_proxy(url, rules) as proxy,
            tritonclient.http.InferenceServerClient(proxy.rest.removeprefix("http://")) as program,
        ):
            wanted = tritonclient.http.InferInput("image", list(image.shape), "FP32")
            wanted.set_data_from_numpy(image)
            scores = program.infer("m", [wanted]).as_numpy("scores")
            assert np.array_equal(scores, expected)
        [listed] = httpx2.get(f"{url}/vessels/v1/models").json()["models"]
        assert (listed["name"], listed["state"]) == ("m", "ready")
        path = f"{url}/vessels/v1/models/m/predict"
        for address, body, headers, status, code in [
            (path, bytes(10), {}, 400, "malformed"),
            (path, bytes(100), {}, 421, "not_opened"),
            (path, bytes(100), {"vessels-environment": "00" * 8}, 421, "not_opened"),
            (path, bytes(100), {"vessels-environment": "zz"}, 400, "malformed"),
            (path, bytes(100), {"vessels-deadline-ms": "0"}, 400, "malformed"),
            (path, bytes(100), {"content-type": "text/plain"}, 415, "media_type"),
            (path, bytes(listed["largest_request"] + 1), {}, 413, "too_large"),
            (path.replace("/m/", "/n/"), bytes(100), {}, 404, "unknown_model"),
            (f"{url}/nothing", bytes(100), {}, 404, "not_found"),
            (f"{url}/v2/health/live", bytes(100), {}, 405, "method"),
        ]:
            answer = httpx2.post(address, content=body, headers=headers)
            found = (answer.status_code, answer.json()["error"]["code"])
            assert found == (status, code), address
        answer = httpx2.get(f"{url}/vessels/v1/models/m/evidence?nonce=00")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed")
