"""Beyond one machine: sealed models on a Ray cluster, with trusted memory as a resource of nodes.

``app`` is a Ray Serve application: ``serve run vessels.cluster:app keys=URL models=FILE``. Each
model is a deployment, each of its replicas (:mod:`~vessels.cluster.replica`) holds one
environment, and asks its node for as much of the resource ``epc_mib`` as that environment takes
(:mod:`~vessels.cluster.need`). What was sealed to an environment is sent to its replica
(:mod:`~vessels.cluster.router`); the network sees :mod:`~vessels.cluster.ingress`.
``docs/cluster.md`` says how it is used.

The application needs Ray: ``pip install 'vessels[ray]'``.
"""

from typing import Any

from vessels.errors import UsageError


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from vessels.cluster.application import app
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UsageError("serving on a cluster needs Ray: pip install 'vessels[ray]'.") from error
    return app
