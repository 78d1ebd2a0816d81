"""Which replica gets which request: what was sealed to an environment goes to that one alone."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

ENVIRONMENT: Final = "environment"
"""Name of the argument that says which environment a request is for, and of the replica's
metadata that say which one it holds."""

EVIDENCE: Final = "evidence"
"""Name of the method of a replica that gives evidence of its environment."""

STAY_SECONDS = 5.0
"""Within which a client that is sent elsewhere asks for evidence, and who was given evidence of an
environment sends what is sealed to it."""

UNEVEN_COUNT = 4
"""Requests that an environment has at a time before others are thought of."""


class EnvironmentRouter(RequestRouter):
    """Chooses the replica that holds the environment a request is for.

    A replica's environment is told together with the replica itself, so whoever knows one knows
    the other. When there is no such replica any gets the request: it sees that the request is
    not for it, and says so; the client then asks for evidence of another environment. Requests
    for no environment, such as those for evidence, go to the replica with the least to do.

    Clients stay with an environment. So that new ones share the load, some requests for a busy
    environment are sent elsewhere while another has less to do: as many as even the load out. A
    client does not go elsewhere twice for one request. So for some time it is not given evidence
    of the environment that it was to leave, and may stay with the one that it was given.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """For Serve, once."""
        self._proved: dict[ReplicaID, float] = {}
        self._left: dict[ReplicaID, float] = {}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The replicas that may get ``pending_request``; among several, the least busy gets it."""
        if pending_request is None:
            return [_shuffled(candidate_replicas)]
        # There is nothing else to be tried at once when the replica takes no more.
        pending_request.routing_context.should_backoff = True
        if pending_request.metadata.call_method == EVIDENCE:
            kept = [r for r in candidate_replicas if not _recent(self._left, r)]
            return [_shuffled(kept or candidate_replicas)]
        wanted = pending_request.kwargs.get(ENVIRONMENT)
        holder = next((r for r in candidate_replicas if environment_of(r) == wanted), None)
        if wanted is None or holder is None:
            return [_shuffled(candidate_replicas)]
        if not _recent(self._proved, holder):
            others = [r for r in candidate_replicas if r is not holder]
            loads = [self._load(r) for r in others]
            if random.random() < share_to_move(self._load(holder), loads):
                self._left[holder.replica_id] = time.monotonic()
                return [[others[loads.index(min(loads))]]]
        return [[holder]]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """For Serve: ``replica_id`` gets ``pending_request``."""
        if pending_request.metadata.call_method == EVIDENCE:
            self._proved[replica_id] = time.monotonic()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """For Serve: these are all there are now."""
        super().update_replicas(replicas)
        known = {r.replica_id for r in replicas}
        for times in (self._proved, self._left):
            for gone in times.keys() - known:
                del times[gone]

    def _load(self, replica: RunningReplica) -> int:
        """Requests that ``replica`` has, as far as this router knows."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0


def _recent(times: Mapping[ReplicaID, float], replica: RunningReplica) -> bool:
    at = times.get(replica.replica_id)
    return at is not None and time.monotonic() - at < STAY_SECONDS


def _shuffled(replicas: Sequence[RunningReplica]) -> list[RunningReplica]:
    """Of several with the same to do the first is taken: each in turn is to be first."""
    return random.sample(replicas, len(replicas))


def environment_of(replica: Any) -> str | None:
    """The environment that ``replica`` holds."""
    found: str | None = replica.replica_metadata.get(ENVIRONMENT)
    return found


def share_to_move(load: int, others: Sequence[int]) -> float:
    """Which share of the requests for an environment with ``load`` should go to ``others``.

    None, unless it has :data:`UNEVEN_COUNT` and another less than half as many.
    """
    if load < UNEVEN_COUNT or not others or 2 * min(others) >= load:
        return 0.0
    mean = (load + sum(others)) / (1 + len(others))
    return max(0.0, 1 - mean / load)
