"""The sealed models of one folder: copies of a network under other names, each with its own key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import zoo
from vessels.api import compile_model
from vessels.plan import Plan, Policy
from vessels.seal import create_key, load_key, seal


@dataclass
class Models:
    """Makes models in ``folder`` as they are wanted; each network is compiled once."""

    folder: Path
    _plans: dict[tuple[str, Policy], Plan] = field(default_factory=dict)

    def tenants(self, network: str, policy: Policy, count: int) -> dict[str, Path]:
        """``count`` models by name; the key of each lies beside it."""
        return {f"{network}-{n + 1}": self._tenant(network, policy, n + 1) for n in range(count)}

    def _tenant(self, network: str, policy: Policy, number: int) -> Path:
        path = self.folder / f"{network}-{policy}-{number}.vessel"
        if path.exists():
            return path
        if (network, policy) not in self._plans:
            self._plans[network, policy] = compile_model(zoo.build(network), policy=policy)
        key = path.with_suffix(".key")
        secret = load_key(key) if key.exists() else create_key(key)
        seal(self._plans[network, policy], secret, path)
        return path
