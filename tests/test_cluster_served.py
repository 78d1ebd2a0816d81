"""Serving on a Ray cluster of one node: what clients see."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.http

pytest.importorskip("ray", reason="Ray is not installed: pip install 'vessels[ray]'")

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from tests.attestation import rules_of
from tests.cluster_running import deployed, enclaves, nodes, until
from tests.conftest import Sealed
from tests.proxy_running import running_proxy
from vessels import Client, Enclave
from vessels.attestation import Evidence, Policy, new_nonce
from vessels.cluster.config import ClusterConfig
from vessels.predict_headers import DEADLINE, ENVIRONMENT, identity_of
from vessels.sealed_messages import RequestSealer


@pytest.fixture(scope="module")
def rules(sealed: Sealed, home: None) -> Policy:
    return rules_of(sealed.vessel)


@pytest.fixture(scope="module")
def image(sealed: Sealed) -> Any:
    return np.load(sealed.image)


@pytest.fixture(scope="module")
def expected(sealed: Sealed, image: Any) -> Any:
    with Enclave(sealed.vessel, key=sealed.key) as enclave:
        return enclave.run({"image": image})["scores"]


@pytest.fixture(scope="module")
def url(sealed: Sealed, home: None) -> Iterator[str]:
    """Of a cluster with one environment of four slots, for which eight requests may wait."""
    model = {"name": "m", "path": sealed.vessel, "threads": 1, "slots": 4, "queue": 8}
    config = ClusterConfig.model_validate({"models": [model], "insecure_keys": [sealed.key]})
    with nodes(head_epc_mib=16) as cluster, deployed(cluster, config) as url:
        yield url


def test_a_cluster_serves_the_same_interface(
    url: str, rules: Policy, image: Any, expected: Any
) -> None:
    with Client(url, policy=rules) as client:
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
        [listed] = httpx2.get(f"{url}/vessels/v1/models", timeout=60).json()["models"]
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
            (f"{path}/", bytes(100), {}, 404, "not_found"),
            (f"{url}/v2/health/live", bytes(100), {}, 405, "method"),
        ]:
            answer = httpx2.post(address, content=body, headers=headers, timeout=60)
            found = (answer.status_code, answer.json()["error"]["code"])
            assert found == (status, code), address
        evidence = f"{url}/vessels/v1/models/m/evidence"
        nonce = new_nonce().hex()
        answer = httpx2.get(f"{evidence}?nonce={nonce}", headers={DEADLINE: "0"}, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed")
        answer = httpx2.get(f"{evidence}?nonce=00", timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed")


def test_what_waits_on_a_cluster_is_run_together_or_refused(
    url: str, sealed: Sealed, image: Any, expected: Any
) -> None:
    path = f"{url}/vessels/v1/models/m"
    evidence = httpx2.get(f"{path}/evidence?nonce={new_nonce().hex()}", timeout=60)
    claims = Evidence.decode(evidence.content).claims
    sealer = RequestSealer(claims.public_key, claims.model_digest)
    handle = serve.get_deployment_handle("m", "vessels")

    def count(name: str) -> float:
        families = text_string_to_metric_families(handle.metrics.remote().result())
        return sum(s.value for f in families for s in f.samples if s.name == name)

    def ask(deadline_ms: int = 120_000) -> httpx2.Response:
        request, opener = sealer.seal_predict({"image": image})
        headers = {ENVIRONMENT: identity_of(claims.public_key), DEADLINE: str(deadline_ms)}
        answer = httpx2.post(f"{path}/predict", content=request, headers=headers, timeout=180)
        if answer.status_code == 200:
            assert np.array_equal(opener.open(answer.content)["scores"], expected)
        return answer

    assert ask().status_code == 200
    runs, answered = count("vessels_batch_size_count"), count("vessels_batch_size_sum")
    [enclave] = enclaves(sealed.vessel)
    with ThreadPoolExecutor(16) as threads:
        os.kill(enclave, signal.SIGSTOP)
        try:
            asked = [threads.submit(ask)]
            until(lambda: count("vessels_batch_size_count") > runs, "a run")
            late = ask(300)
            asked += [threads.submit(ask) for _ in range(12)]
            until(lambda: sum(each.done() for each in asked) == 4, "that four are too many")
        finally:
            os.kill(enclave, signal.SIGCONT)
        answers = [late, *(each.result() for each in asked)]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(refused) == 5
    for answer in refused:
        found = (answer.status_code, answer.json()["error"]["code"])
        assert found == (429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
    # One alone, and eight that waited for it.
    assert count("vessels_batch_size_count") - runs == 3
    assert count("vessels_batch_size_sum") - answered == 9
