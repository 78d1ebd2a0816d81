"""Clients and proxy against the server itself, with a real model in a simulated enclave."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from tests.attestation import policy, rules_of
from tests.conftest import Sealed
from tests.proxy_running import running_proxy
from tests.serving import Running, serving, until
from vessels import Client, Enclave
from vessels.attestation import Policy
from vessels.attestation.simulation import SimulationRoot
from vessels.errors import AttestationError, ServerError


@pytest.fixture
def server(sealed: Sealed, home: None) -> Iterator[Running]:
    with serving({"m": sealed.vessel}, sealed.key) as running:
        running.await_ready()
        yield running


@pytest.fixture
def rules(sealed: Sealed, home: None) -> Policy:
    return rules_of(sealed.vessel)


@pytest.fixture
def image(sealed: Sealed) -> Any:
    return np.load(sealed.image)


@pytest.fixture
def expected(sealed: Sealed, image: Any) -> Any:
    with Enclave(sealed.vessel, key=sealed.key) as enclave:
        return enclave.run({"image": image})["scores"]


def test_a_prediction(server: Running, rules: Policy, image: Any, expected: Any) -> None:
    with Client(server.url, policy=rules) as client:
        for _ in range(3):
            outputs = client.predict("m", {"image": image})
            assert list(outputs) == ["scores"]
            assert np.array_equal(outputs["scores"], expected)
        described = client.describe("m")
        assert [(p.name, p.shape) for p in described.inputs] == [("image", (1, 3, 16, 16))]
        assert [(p.name, p.shape) for p in described.outputs] == [("scores", (1, 5))]
        assert client.ready("m")


def test_an_enclave_that_was_killed(
    server: Running, rules: Policy, image: Any, expected: Any
) -> None:
    with Client(server.url, policy=rules) as client:
        before = client.describe("m").verified.claims.public_key
        pid = server.enclave
        os.kill(pid, signal.SIGKILL)

        def answers() -> bool:
            try:
                return np.array_equal(client.predict("m", {"image": image})["scores"], expected)
            except ServerError as error:
                assert error.code in ("enclave_ended", "not_ready", "not_opened", "no_evidence")
                return False

        until(answers, "an answer of the next enclave")
        assert client.describe("m").verified.claims.public_key != before


def test_a_policy_for_another_build(server: Running, rules: Policy, image: Any) -> None:
    other = policy(
        models={"m": ["00" * 32]},
        sgx={"mr_enclave": [v.hex() for v in rules.sgx.mr_enclave.values or ()]},  # type: ignore[union-attr]
        root=SimulationRoot.load_or_create(),
    )
    with (
        Client(server.url, policy=other) as client,
        pytest.raises(AttestationError, match=r"^model: seen "),
    ):
        client.predict("m", {"image": image})


def test_standard_clients(server: Running, rules: Policy, image: Any, expected: Any) -> None:
    with running_proxy(server.url, rules) as proxy:
        with tritonclient.http.InferenceServerClient(proxy.rest.removeprefix("http://")) as web:
            assert web.is_server_ready() and web.is_model_ready("m")
            asked = tritonclient.http.InferInput("image", image.shape, "FP32")
            asked.set_data_from_numpy(image)
            assert np.array_equal(web.infer("m", [asked]).as_numpy("scores"), expected)
        with tritonclient.grpc.InferenceServerClient(proxy.grpc) as rpc:
            assert rpc.is_server_ready() and rpc.is_model_ready("m")
            called = tritonclient.grpc.InferInput("image", image.shape, "FP32")
            called.set_data_from_numpy(image)
            assert np.array_equal(rpc.infer("m", [called]).as_numpy("scores"), expected)


def test_many_clients_at_once(server: Running, rules: Policy, image: Any, expected: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with Client(server.url, policy=rules) as client, ThreadPoolExecutor(16) as pool:
        for outputs in pool.map(lambda _: client.predict("m", {"image": image}), range(64)):
            assert np.array_equal(outputs["scores"], expected)
