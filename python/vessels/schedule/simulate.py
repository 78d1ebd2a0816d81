"""Simulation: any scheduler, on any trace, in simulated time.

A discrete-event simulation of a server, its environments and its clients. A *policy* is whatever
has the interface of :class:`~vessels.schedule.scheduler.Scheduler`. Its decisions are carried out
by :mod:`vessels.schedule.simulated`, which checks them; here are the clock and the clients.

Each model has some clients, each of which holds evidence of one environment and seals its
requests to it. A client without evidence asks for some first; when its environment turns out to
be gone it does so again and sends the request anew, once.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from vessels.schedule.decisions import Assign, Launch, Reason, Refuse, Run, Stop
from vessels.schedule.events import Arrived, Ended, Event, Finished, Gone, Ready, Tick, Wanted
from vessels.schedule.model import Machine
from vessels.schedule.simulated import (
    RuleBrokenError,
    SimulatedEnvironment,
    SimulatedMachine,
    SimulatedModel,
    State,
)
from vessels.schedule.simulation import OUTCOMES, Outcome, Policy, Result, Surroundings
from vessels.schedule.traces import Trace

DRAIN_SECONDS = 600.0
"""After the last request of a trace; what is not answered by then never is."""
MOST_TICKS = 1000
"""At one moment; a policy that wants more of them is in a loop."""


def simulate(
    policy: Policy,
    machine: Machine,
    models: Sequence[SimulatedModel],
    trace: Trace,
    *,
    surroundings: Surroundings | None = None,
    seed: int = 0,
) -> Result:
    """Replay ``trace``; RuleBrokenError when the policy decides what cannot be done."""
    if tuple(m.spec.name for m in models) != trace.names:
        raise ValueError("the trace is of other models")
    simulation = _Simulation(
        policy,
        SimulatedMachine(machine, models),
        trace,
        surroundings or Surroundings(),
        np.random.default_rng(seed),
    )
    return simulation.run()


@dataclass
class _Client:
    """``environment`` is that of its evidence; ``waiting`` requests have none to be sealed to."""

    model: str
    environment: int | None = None
    asking: bool = False
    waiting: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Ticket:
    """A client's wish for evidence; or a request, sealed to an environment."""

    client: _Client
    request: int | None = None
    environment: int | None = None


class _Simulation:
    def __init__(
        self,
        policy: Policy,
        machine: SimulatedMachine,
        trace: Trace,
        surroundings: Surroundings,
        random: np.random.Generator,
    ) -> None:
        self.policy, self.machine, self.trace = policy, machine, trace
        self.around, self.random = surroundings, random
        self.now = 0.0
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.ticket_numbers = itertools.count(1)
        self.tickets: dict[int, _Ticket] = {}
        count = surroundings.clients
        self.clients = [[_Client(name) for _ in range(count)] for name in trace.names]
        self.choices = random.integers(count, size=len(trace))
        self.ends = np.full(len(trace), np.inf)
        self.outcomes = np.full(len(trace), Outcome.NEVER, dtype=np.int8)
        self.tries = np.zeros(len(trace), dtype=np.int8)
        self.unsettled = len(trace)
        self.ticks = 0
        self.owed_core_seconds = 0.0

    def run(self) -> Result:
        times = self.trace.times.tolist()
        last = times[-1] if times else 0.0
        self.tell(Tick(0.0))
        for request, time in enumerate(times):
            self.advance(time)
            self.now = time
            self.send(self.client(request), request)
        while self.unsettled and self.now < last + DRAIN_SECONDS:
            wake = self.policy.wake()
            due = [t for t in (wake, self.agenda[0][0] if self.agenda else None) if t is not None]
            if not due:
                break
            self.advance(max(self.now, min(due)))
        return Result(self.trace, self.ends, self.outcomes, self.machine, self.now)

    def advance(self, until: float) -> None:
        """Let everything happen that is due up to ``until``."""
        while True:
            wake = self.policy.wake()
            due = self.agenda[0][0] if self.agenda else np.inf
            if wake is not None and wake <= min(due, until):
                self.ticks = self.ticks + 1 if wake <= self.now else 0
                if self.ticks > MOST_TICKS:
                    raise RuleBrokenError(f"the policy wants to be woken at {wake} again and again")
                self.now = max(self.now, wake)
                self.tell(Tick(self.now))
            elif due <= until:
                self.now, _, happen = heapq.heappop(self.agenda)
                happen()
            else:
                return

    def later(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self.agenda, (self.now + seconds, next(self.order), happen))

    def tell(self, event: Event) -> None:
        for decision in self.policy.handle(event):
            match decision:
                case Launch():
                    self.launch(decision)
                case Stop():
                    stopping = self.machine.stop(decision)
                    self.later(self.around.stop, partial(self.end, stopping))
                case Run():
                    self.start_run(decision)
                case Assign():
                    self.assign(decision)
                case Refuse():
                    self.refuse(decision)

    # Clients

    def client(self, request: int) -> _Client:
        found: _Client = self.clients[self.trace.models[request]][self.choices[request]]
        return found

    def deadline(self, request: int) -> float | None:
        deadline = float(self.trace.times[request] + self.trace.deadlines[request])
        return None if math.isinf(deadline) else deadline

    def send(self, client: _Client, request: int) -> None:
        """Send it if there is evidence, else ask for some."""
        if client.environment is None:
            client.waiting.append(request)
            if not client.asking:
                client.asking = True
                self.later(self.around.travel, partial(self.want, client, self.deadline(request)))
        else:
            self.later(
                self.around.travel, partial(self.arrive, client, request, client.environment)
            )

    def want(self, client: _Client, deadline: float | None) -> None:
        ticket = self.new_ticket(_Ticket(client))
        self.tell(Wanted(self.now, ticket, client.model, deadline))

    def arrive(self, client: _Client, request: int, environment: int) -> None:
        ticket = self.new_ticket(_Ticket(client, request, environment))
        if self.around.patience is not None:
            leave = self.trace.times[request]
            leave += self.trace.deadlines[request] * self.around.patience
            self.later(max(0.0, leave - self.now), partial(self.leave, ticket))
        self.tell(Arrived(self.now, ticket, environment, self.deadline(request)))

    def leave(self, ticket: int) -> None:
        """The client of a request that has not been answered goes; a run goes on without it."""
        if ticket in self.tickets:
            if not self.in_a_run(ticket):
                self.settle_ticket(self.tickets.pop(ticket), Outcome.LEFT)
            self.tell(Gone(self.now, ticket))

    def in_a_run(self, ticket: int) -> bool:
        return any(ticket in e.running for e in self.machine.environments.values())

    def new_ticket(self, ticket: _Ticket) -> int:
        number = next(self.ticket_numbers)
        self.tickets[number] = ticket
        return number

    def answered(self, decision: Assign | Refuse) -> _Ticket:
        if decision.ticket not in self.tickets or self.in_a_run(decision.ticket):
            raise RuleBrokenError(f"{decision}: the ticket is answered already, or never was")
        return self.tickets.pop(decision.ticket)

    def assign(self, decision: Assign) -> None:
        ticket = self.answered(decision)
        environment = self.machine.environments.get(decision.environment)
        if ticket.request is not None or environment is None:
            raise RuleBrokenError(f"{decision}: no wish for evidence, or no such environment")
        if environment.model.spec.name != ticket.client.model:
            raise RuleBrokenError(f"{decision}: it is of another model")
        wait = max(0.0, environment.evidence_at - self.now) + self.around.evidence
        self.later(wait, partial(self.evidence, ticket.client, environment.number))

    def evidence(self, client: _Client, environment: int) -> None:
        """The client learns of ``environment``, or that it is gone before it gave evidence."""
        client.asking = False
        waiting, client.waiting = client.waiting, []
        if environment in self.machine.environments:
            client.environment = environment
            for request in waiting:
                self.send(client, request)
        else:
            for request in waiting:
                self.again(client, request, Outcome.ENDED)

    def refuse(self, decision: Refuse) -> None:
        ticket = self.answered(decision)
        outcome = OUTCOMES[decision.reason]
        if ticket.request is None:
            ticket.client.asking = False
            waiting, ticket.client.waiting = ticket.client.waiting, []
            for request in waiting:
                self.settle(request, outcome)
        elif decision.reason in (Reason.ELSEWHERE, Reason.ENDED):
            self.later(self.around.travel, partial(self.forget, ticket, outcome))
        else:
            self.settle_ticket(ticket, outcome)

    def forget(self, ticket: _Ticket, outcome: Outcome) -> None:
        """The client's environment is gone; it may hold evidence of another one by now."""
        assert ticket.request is not None
        if ticket.client.environment == ticket.environment:
            ticket.client.environment = None
        self.again(ticket.client, ticket.request, outcome)

    def again(self, client: _Client, request: int, outcome: Outcome) -> None:
        """Send it anew if it was not yet, else that was its end."""
        if self.tries[request]:
            self.settle(request, outcome)
        else:
            self.tries[request] = 1
            self.send(client, request)

    def settle_ticket(self, ticket: _Ticket, outcome: Outcome) -> None:
        assert ticket.request is not None
        self.settle(ticket.request, outcome)

    def settle(self, request: int, outcome: Outcome) -> None:
        if self.outcomes[request] != Outcome.NEVER:
            raise RuleBrokenError(f"request {request} is settled a second time")
        self.outcomes[request] = outcome
        self.ends[request] = self.now + self.around.travel
        self.unsettled -= 1

    # Environments

    def launch(self, decision: Launch) -> None:
        environment = self.machine.launch(decision, self.now + self.around.evidence_after)
        self.owed_core_seconds += self.around.start_core_seconds
        start = environment.model.start_seconds[decision.shape.rung]
        self.later(start, partial(self.ready, environment))
        if self.around.failures:
            life = self.random.exponential(1 / self.around.failures)
            self.later(life, partial(self.end, environment))

    def ready(self, environment: SimulatedEnvironment) -> None:
        if environment.state is State.STARTING and self.lives(environment):
            environment.state = State.IDLE
            self.tell(Ready(self.now, environment.number))

    def start_run(self, decision: Run) -> None:
        environment = self.machine.run(decision)
        for ticket in decision.tickets:
            if ticket not in self.tickets or self.tickets[ticket].request is None:
                raise RuleBrokenError(f"{decision}: ticket {ticket} is no request that waits")
        seconds = environment.model.run_seconds(environment.shape, len(decision.tickets))
        seconds *= 1 + self.random.random() * self.around.jitter
        seconds += self.owed_core_seconds / environment.shape.threads
        self.owed_core_seconds = 0.0
        self.later(seconds, partial(self.finish, environment, decision.tickets, seconds))

    def finish(
        self, environment: SimulatedEnvironment, tickets: tuple[int, ...], seconds: float
    ) -> None:
        if not self.lives(environment):
            return
        self.machine.finish(environment, seconds)
        for ticket in tickets:
            self.settle_ticket(self.tickets.pop(ticket), Outcome.ANSWERED)
        self.tell(Finished(self.now, environment.number))

    def end(self, environment: SimulatedEnvironment) -> None:
        """It is no more: its run's requests are told so, by the policy or else by the host."""
        if not self.lives(environment):
            return
        running = self.machine.end(environment)
        self.tell(Ended(self.now, environment.number))
        for ticket in running:
            if ticket in self.tickets:
                self.refuse(Refuse(ticket, Reason.ENDED, 0.0))

    def lives(self, environment: SimulatedEnvironment) -> bool:
        return self.machine.environments.get(environment.number) is environment
