"""The manifests of models on a cluster, as the Kubernetes API has them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

import vessels
from vessels.errors import UsageError
from vessels.kubernetes.cluster import SCRATCH_SIZE, SERVER_SIZE, Cluster, Deployed
from vessels.ladder import MIB
from vessels.serve.limits import Limits

PORT = 8080
USER = 10001
"""Of no privileges, and in no image by chance."""

MODELS = "/models"
"""Where the pod finds ``NAME.vessel`` and its signed folder ``NAME.gramine``."""

_AFFINITY_SECONDS = 3 * 60 * 60
_PRESTOP_SECONDS = 5

Manifest = dict[str, Any]


def manifests(models: Sequence[Deployed], cluster: Cluster) -> list[Manifest]:
    """All that is to be applied, in order. Raises :class:`UsageError` for two of one name."""
    labels = [m.label for m in models]
    if twice := sorted({x for x in labels if labels.count(x) > 1}):
        raise UsageError(f"two models would both be {', '.join(twice)}; give one another name.")
    found: list[Manifest] = []
    for model in models:
        found += [
            _deployment(model, cluster),
            _service(model),
            _disruption_budget(model),
            _network_policy(model, cluster),
        ]
    return found


def as_yaml(found: Sequence[Manifest]) -> str:
    """A stream of YAML documents."""
    text = io.StringIO()
    text.write(
        "# Made by `vessels kubernetes` from the models' plans: make it anew rather than edit it.\n"
        "# docs/kubernetes.md explains every field and says what must be installed.\n"
    )
    yaml.safe_dump_all(found, text, sort_keys=False, explicit_start=True, width=100)
    return text.getvalue()


def quantity(size: int) -> str:
    """Bytes as Kubernetes writes them, in the largest binary unit that fits."""
    for unit, factor in (("Gi", 1 << 30), ("Mi", MIB), ("Ki", 1 << 10)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def _deployment(model: Deployed, cluster: Cluster) -> Manifest:
    volumes: list[Manifest] = [
        {"name": "shared-memory", "emptyDir": _in_memory(model.shared_size)},
        {"name": "scratch", "emptyDir": _in_memory(SCRATCH_SIZE)},
    ]
    if cluster.claim is not None:
        claim = {"claimName": cluster.claim, "readOnly": True}
        volumes.append({"name": "models", "persistentVolumeClaim": claim})
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": round(Limits().shutdown_seconds) + _PRESTOP_SECONDS + 10,
        "nodeSelector": {"intel.feature.node.kubernetes.io/sgx": "true"},
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": _selector(model)},
            }
        ],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(model, cluster)],
        "volumes": volumes,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(model),
        "spec": {
            "replicas": cluster.replicas,
            "selector": {"matchLabels": _selector(model)},
            # The old pod answers until the new one does; there must be room for one more.
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": {
                "metadata": {
                    "labels": _labels(model),
                    "annotations": {
                        "sgx.intel.com/quote-provider": "aesmd",
                        "vessels/model-digest": model.digest.hex(),
                    },
                },
                "spec": pod,
            },
        },
    }


def _container(model: Deployed, cluster: Cluster) -> Manifest:
    sgx = {
        "sgx.intel.com/epc": quantity(model.epc_size),
        "sgx.intel.com/enclave": "1",
        "sgx.intel.com/provision": "1",
    }
    mounts: list[Manifest] = [
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        {"name": "scratch", "mountPath": "/tmp"},
    ]
    if cluster.claim is not None:
        mounts.append({"name": "models", "mountPath": MODELS, "readOnly": True})
    return {
        "name": "vessels",
        "image": cluster.image,
        "command": ["vessels"],
        "args": [
            "serve",
            f"{model.name}={MODELS}/{model.name}.vessel",
            "--backend=gramine",
            f"--manifest={model.name}={MODELS}/{model.name}.gramine",
            f"--keys={cluster.keys}",
            f"--listen=0.0.0.0:{PORT}",
            # Else it would take the whole machine's.
            f"--epc={model.epc_size}",
            "--log=json",
        ],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "resources": {
            "requests": {
                "cpu": str(model.plan.thread_count),
                "memory": quantity(_rounded(SERVER_SIZE + model.shared_size)),
                **sgx,
            },
            "limits": {"memory": quantity(_rounded(model.memory_size)), **sgx},
        },
        "startupProbe": _probe("live", period=2, failures=60),
        "livenessProbe": _probe("live", period=10, failures=3),
        "readinessProbe": _probe("ready", period=5, failures=1),
        # New connections stop before the server does.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_PRESTOP_SECONDS)]}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }


def _service(model: Deployed) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(model),
        "spec": {
            "selector": _selector(model),
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
            # What is sealed to one pod's enclave no other can open.
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": _AFFINITY_SECONDS}},
        },
    }


def _disruption_budget(model: Deployed) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(model),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": _selector(model)}},
    }


def _network_policy(model: Deployed, cluster: Cluster) -> Manifest:
    names = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(model),
        "spec": {
            "podSelector": {"matchLabels": _selector(model)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"ports": [{"protocol": "TCP", "port": PORT}]}],
            # Names, and the key service. Quotes are made by the node.
            "egress": [
                {"ports": names},
                {"ports": [{"protocol": "TCP", "port": cluster.keys_port}]},
            ],
        },
    }


def _metadata(model: Deployed) -> Manifest:
    return {"name": model.label, "labels": _labels(model)}


def _selector(model: Deployed) -> Mapping[str, str]:
    """What a pod is found by; a Deployment's can never change, so it has no version in it."""
    return {"app.kubernetes.io/name": "vessels", "app.kubernetes.io/instance": model.label}


def _labels(model: Deployed) -> Mapping[str, str]:
    return {
        **_selector(model),
        "app.kubernetes.io/version": vessels.__version__,
        "app.kubernetes.io/component": "server",
        "app.kubernetes.io/part-of": "vessels",
        "app.kubernetes.io/managed-by": "vessels",
    }


def _probe(what: str, *, period: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": f"/v2/health/{what}", "port": "http"},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


def _in_memory(size: int) -> Manifest:
    return {"medium": "Memory", "sizeLimit": quantity(_rounded(size))}


def _rounded(size: int) -> int:
    """Up to whole MiB."""
    return -(-size // MIB) * MIB
