"""What the evaluation needs of one network's study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from vessels.study.result import (
    PAGE_SIZE,
    FaultCost,
    Footprint,
    LatencyPoint,
    Machine,
    PeerPoint,
    Policy,
    TenantsPoint,
)
from vessels.study.wording import at_epc


@dataclass(frozen=True)
class Result:
    """One network's figures; sizes in bytes."""

    network: str
    epc_size: int
    conventional_size: int
    planned_size: int
    footprint: Footprint
    fault_cost: FaultCost | None
    latency: tuple[LatencyPoint, ...]
    tenants: tuple[TenantsPoint, ...]
    peer: tuple[PeerPoint, ...]
    machine: Machine
    unmeasured: str | None
    notes: tuple[str, ...]

    @classmethod
    def of(cls, study: Mapping[str, Any]) -> Self:
        """From :meth:`vessels.study.result.Study.as_json`, or that read back from a file."""
        cost = study["fault_cost"]
        return cls(
            network=study["model"],
            epc_size=study["epc_size"],
            conventional_size=study["conventional"]["pool_size"],
            planned_size=study["planned"]["pool_size"],
            footprint=Footprint(**study["footprint"]),
            fault_cost=None if cost is None else FaultCost(**cost),
            latency=tuple(LatencyPoint(**p) for p in study["latency"]),
            tenants=tuple(TenantsPoint(**p) for p in study["tenants"]),
            peer=tuple(PeerPoint(**p) for p in study["peer"]),
            machine=Machine(**study["machine"]),
            unmeasured=study["unmeasured"],
            notes=tuple(study["notes"]),
        )

    @property
    def reduction(self) -> float:
        """How many times smaller the plan's pool is."""
        return self.conventional_size / self.planned_size

    @property
    def speedup(self) -> float | None:
        """Conventional over planned latency in the EPC."""
        slow, fast = self.at_epc("conventional"), self.at_epc("planned")
        return None if slow is None or fast is None else slow.median_ms / fast.median_ms

    def speedup_at(self, fault_ns: float) -> float | None:
        """The same if a fault cost ``fault_ns``, by the counts; an estimate."""
        slow, fast = self._conventional_ms(fault_ns), self.at_epc("planned")
        return None if slow is None or fast is None or fast.faults else slow / fast.median_ms

    def rate_at(self, fault_ns: float) -> float | None:
        """Conventional predictions per second, all cores at work, if a fault cost ``fault_ns`` on
        each of them at once, by the counts of one tenant; an estimate."""
        alone = self._conventional_ms(fault_ns)
        return None if alone is None else self.machine.core_count * 1e3 / alone

    def _conventional_ms(self, fault_ns: float) -> float | None:
        paged, still = self.at_epc("conventional"), self.unpaged("conventional")
        if paged is None or still is None:
            return None
        return still.median_ms + paged.faults * fault_ns / 1e6

    def at_epc(self, policy: Policy) -> LatencyPoint | None:
        """The point in an EPC of the study's size."""
        return at_epc(self.latency, policy, self.epc_size)

    def unpaged(self, policy: Policy) -> LatencyPoint | None:
        """The point in the largest EPC in which nothing was paged."""
        own = [p for p in self.latency if p.policy == policy and p.faults == 0]
        return max(own, key=lambda p: p.epc_size, default=None)

    def rate(self, policy: Policy, tenant_count: int) -> float | None:
        """Predictions per second of so many tenants together."""
        for point in self.tenants:
            if (point.policy, point.tenant_count) == (policy, tenant_count):
                return point.predictions_per_second
        return None

    def capacity(self, epc_size: int) -> int:
        """Whole pages, in bytes, that an EPC leaves for the pool of one enclave."""
        return (epc_size - self.footprint.runtime_size) // PAGE_SIZE * PAGE_SIZE

    def fitting(self, policy: Policy) -> int:
        """Enclaves that the EPC holds at once without paging."""
        pool = self.planned_size if policy == "planned" else self.conventional_size
        return self.epc_size // (pool + self.footprint.runtime_size)
