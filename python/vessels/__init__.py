"""Vessels: confidential deep-learning prediction in as little trusted memory as possible.

>>> import vessels                                                       # doctest: +SKIP
>>> vessels.build("model.onnx", "model.vessel", key="model.key")         # doctest: +SKIP
>>> with vessels.Enclave("model.vessel", key="model.key") as enclave:    # doctest: +SKIP
...     outputs = enclave.run({"input": image})
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vessels.api import Inspection, build, inspect, plot
    from vessels.client import AsyncClient, Client
    from vessels.enclave import Enclave
    from vessels.errors import VesselsError

__version__ = "0.1.0"

__all__ = [
    "AsyncClient", "Client", "Enclave", "Inspection", "VesselsError", "__version__", "build",
    "inspect", "plot",
]  # fmt: skip

_HOMES = {
    "AsyncClient": "vessels.client",
    "Client": "vessels.client",
    "Enclave": "vessels.enclave",
    "Inspection": "vessels.api",
    "VesselsError": "vessels.errors",
    "build": "vessels.api",
    "inspect": "vessels.api",
    "plot": "vessels.api",
}


def __getattr__(name: str) -> Any:
    # The compiler's libraries take half a second to import: only who builds pays for them.
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module 'vessels' has no attribute {name!r}")
    return getattr(import_module(home), name)
