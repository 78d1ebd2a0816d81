"""The Serve application: a deployment for each model, and the ingress before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from vessels.attestation import model_digest
from vessels.cluster.config import ClusterConfig, ModelConfig
from vessels.cluster.ingress import Ingress, Served
from vessels.cluster.need import RESOURCE, Need, need_of
from vessels.cluster.replica import Replica, Task
from vessels.cluster.router import EnvironmentRouter
from vessels.seal import read_header
from vessels.sealed_messages import request_size

SPARE_COUNT = 32
"""Requests for evidence that an environment takes beside the predictions, and predictions beyond
those that may wait: it is for the environment to say that they are too many."""

LEAST_BUSY_COUNT = 4.0

HEALTH_SECONDS = 1.0
"""How often Serve looks whether an environment still runs."""

QUIET = {"enable_access_log": False}
"""No line for each request: it costs more than what it tells, which Serve's metrics tell, too."""

INGRESS = "_ingress"
"""Its deployment's name, which no model can have; theirs are the models'."""

INGRESS_COUNT = 512
"""Requests that one ingress works on at a time; twice as many may wait."""


def app(arguments: ClusterConfig | Mapping[str, Any]) -> Application:
    """The application that serves what a :class:`ClusterConfig`, or its fields, say.

    For ``serve run`` and Serve configuration files, too. The sealed models are read here, for
    their needs and digests. Raises a :class:`~vessels.errors.VesselsError` where one cannot be.
    """
    config = ClusterConfig.model_validate(arguments)
    handles = {m.name: _deployment(m, config) for m in config.models}
    served = tuple(
        Served(
            m.name,
            model_digest(m.path),
            request_size(read_header(m.path).inputs),
            on_demand=m.replicas[0] == 0,
            need=need(m),
        )
        for m in config.models
    )
    ingress: Deployment = serve.deployment(
        name=INGRESS,
        num_replicas=config.ingress_replicas,
        max_ongoing_requests=INGRESS_COUNT,
        max_queued_requests=2 * INGRESS_COUNT,
        ray_actor_options=_forwarder(config),
        logging_config=QUIET,
        health_check_period_s=HEALTH_SECONDS,
    )(serve.ingress()(Ingress))
    return ingress.bind(served, handles, config.start_seconds, config.predict_seconds)


def _forwarder(config: ClusterConfig) -> dict[str, Any]:
    """What an ingress takes: no core, which are the environments'."""
    # Without its head a cluster loses Serve's controller as well: there it is as safe as can be.
    where = {"node:__internal_head__": 0.001} if config.ingress_on_head else {}
    return {"num_cpus": 0, "resources": where}


def need(model: ModelConfig) -> Need:
    """What one environment of ``model`` takes of a node."""
    return need_of(
        model.path,
        threads=model.threads,
        slots=model.slots,
        memory=model.memory,
        manifest=model.manifest,
    )


def _deployment(model: ModelConfig, config: ClusterConfig) -> Application:
    needed = need(model)
    fewest, most = model.replicas
    task = Task(
        name=model.name,
        path=model.path.absolute(),
        digest=model_digest(model.path),
        shape=needed.shape,
        backend=config.backend,
        manifest=model.manifest and model.manifest.absolute(),
        keys=config.keys,
        insecure_keys=tuple(k.absolute() for k in config.insecure_keys),
        predict_seconds=config.predict_seconds,
        waiting_count=model.queue,
        deadline_seconds=None if model.deadline_ms is None else model.deadline_ms / 1000,
    )
    slots = needed.shape.slots
    # Those that wait, those in a run, and the spare ones.
    taken = model.queue + slots + SPARE_COUNT
    router: dict[str, Any] = {"request_router_class": EnvironmentRouter}
    options: dict[str, Any] = {
        "num_cpus": needed.thread_count,
        "resources": {RESOURCE: needed.epc_mib},
    }
    deployment: Deployment = serve.deployment(
        name=model.name,
        autoscaling_config=AutoscalingConfig(
            min_replicas=fewest,
            max_replicas=most,
            target_ongoing_requests=model.busy_count or max(LEAST_BUSY_COUNT, 2 * slots),
            upscale_delay_s=config.scale_up_seconds,
            downscale_delay_s=config.scale_down_seconds,
        ),
        request_router_config=RequestRouterConfig(**router),
        max_ongoing_requests=taken,
        max_queued_requests=2 * taken,
        ray_actor_options=options,
        logging_config=QUIET,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=config.grace_seconds,
    )(Replica)
    return deployment.bind(task)
