"""What is compared, and how it is asked."""

from __future__ import annotations

from dataclasses import dataclass

from vessels.plan import Policy
from vessels.study.study import DEFAULT_EPC_SIZE


@dataclass(frozen=True)
class System:
    """A way to serve: plans of ``policy``, and the EPC's size known to the scheduler or not.

    ``slots`` are the most requests that a run answers, if not as many as pay.
    """

    name: str
    policy: Policy
    admits: bool
    slots: int | None


OURS = System("ours", "planned", True, None)
UNADMITTED = System("conventional", "conventional", False, 1)
ADMITTED = System("conventional, admitted", "conventional", True, 1)
SYSTEMS = (OURS, UNADMITTED, ADMITTED)

BUSY, DOUBLE = 0.9, 2.0
JUDGED = (BUSY, DOUBLE)
"""The loads that limits are for."""


@dataclass(frozen=True)
class Settings:
    """How it is measured; times in seconds.

    A closed-loop point begins after ``warmup`` and lasts ``seconds``, or longer until there are
    ``least_answers``, up to ``most_seconds``. ``loads`` are of the capacity; each lasts
    ``load_seconds``, of which the first ``load_warmup`` do not count; those that limits are for
    once for each of ``seeds``, the others once.
    They are asked of ``client_network``, and of ``tenant_network`` as a small one, whose closed
    loop then has ``small_clients``. ``mixed_loads`` are of ``mixed_tenants`` models, in parts of
    what tenants are answered at best.
    """

    epc_size: int = DEFAULT_EPC_SIZE
    client_network: str = "resnet50"
    client_counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    tenant_network: str = "squeezenet"
    tenant_counts: tuple[int, ...] = (1, 2, 4, 8, 16)
    clients_per_tenant: int = 2
    seconds: float = 8.0
    least_answers: int = 30
    most_seconds: float = 16.0
    warmup: float = 2.0
    loads: tuple[float, ...] = (0.5, 0.9, 1.0, 1.5, 2.0)
    load_seconds: float = 25.0
    load_warmup: float = 5.0
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    small_clients: int = 16
    mixed_tenants: int = 16
    mixed_loads: tuple[float, ...] = (0.25, 0.5)
    timing_seconds: float = 1.0


QUICK = Settings(
    client_network="squeezenet", client_counts=(1, 4), tenant_counts=(1, 2), seconds=1.0,
    least_answers=2, most_seconds=3.0, warmup=0.5, loads=(0.5, 2.0), load_seconds=4.0,
    load_warmup=1.0, seeds=(1,), mixed_tenants=12, mixed_loads=(0.3,), timing_seconds=0.2,
)  # fmt: skip
