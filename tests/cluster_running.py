"""A local Ray cluster of several nodes, and the Serve application on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import ray
from ray import serve
from ray.cluster_utils import Cluster

import tests.serving
from benchmarks.ports import held_port
from vessels.cluster import app
from vessels.cluster.config import ClusterConfig
from vessels.cluster.need import RESOURCE

PATIENCE = 180.0
"""Seconds within which everything here happens; what takes longer has failed."""

until = partial(tests.serving.until, patience=PATIENCE, pause=0.05)


@dataclass
class Nodes:
    """The cluster's nodes; the head is not among the workers."""

    cluster: Any
    workers: list[Any]
    url: str

    def add(self, epc_mib: int, cpu_count: int = 2) -> Any:
        """One more node."""
        node = self.cluster.add_node(
            num_cpus=cpu_count, resources={RESOURCE: epc_mib}, include_dashboard=False, wait=False
        )
        self.workers.append(node)
        return node

    def kill(self, node: Any) -> None:
        """End all processes of a node at once."""
        self.workers.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)


@contextmanager
def nodes(*epc_mib: int, head_epc_mib: int = 0) -> Iterator[Nodes]:
    """A cluster of a head and of nodes with so much trusted memory each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray's own is 15, with which whatever else runs here keeps a cluster from starting in time.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray knows no other name
    # What waits for room says so after this, else after 30 s.
    os.environ["RAY_SERVE_SLOW_STARTUP_WARNING_S"] = "5"
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2, "include_dashboard": False, "resources": {RESOURCE: head_epc_mib},
        },
    )  # fmt: skip
    with held_port() as port:
        made = Nodes(cluster, [], f"http://127.0.0.1:{port}")
        try:
            ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
            http = {"host": "127.0.0.1", "port": port}
            serve.start(http_options=http, proxy_location="HeadOnly")
            for size in epc_mib:
                made.add(size)
            cluster.wait_for_nodes()
            yield made
        finally:
            end: list[Callable[[], None]] = [serve.shutdown, ray.shutdown, cluster.shutdown]
            for call in end:
                call()


def enclaves(model: Path) -> set[int]:
    """The processes that hold ``model``."""
    found = set()
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--model" in words and str(model).encode() in words:
            found.add(int(line.parent.name))
    return found


@contextmanager
def deployed(cluster: Nodes, config: ClusterConfig, *, ready: bool = True) -> Iterator[str]:
    """``config`` served on ``cluster``; gives the URL."""
    # Not `serve.run`, which waits until there is a replica of each deployment.
    serve.run_many(
        [serve.RunTarget(app(config), name="vessels", route_prefix="/")],
        wait_for_ingress_deployment_creation=True,
        wait_for_applications_running=False,
    )
    try:
        until(lambda: _is_good(f"{cluster.url}/v2/health/live"), "the ingress")
        if ready:
            until(lambda: is_ready(cluster.url), "environments of all models")
        yield cluster.url
    finally:
        serve.delete("vessels")


def is_ready(url: str, name: str | None = None) -> bool:
    """Whether a model, or each, has an environment."""
    return _is_good(url + ("/v2/health/ready" if name is None else f"/v2/models/{name}/ready"))


def _is_good(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=PATIENCE).status_code == 200
    except httpx2.HTTPError:
        return False
