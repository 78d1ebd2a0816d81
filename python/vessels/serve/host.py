"""The host of many models: does what the scheduler decides, and tells it what happens.

All of it is on one event loop, and so is every call of the scheduler, which is asked nothing while
it is being asked. A request is a ticket to it, and here a future that is answered once, whatever
becomes of enclaves, clients and the server.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from vessels.errors import KeyFileError, SealedError, VesselsError
from vessels.schedule.account import EpcAccount
from vessels.schedule.decisions import Assign, Decision, Launch, Reason, Refuse, Run, Stop
from vessels.schedule.events import Arrived, Ended, Event, Finished, Gone, Ready, Tick, Wanted
from vessels.schedule.model import Machine
from vessels.schedule.scheduler import Scheduler
from vessels.serve.environment import Environment, State, Tools
from vessels.serve.errors import Code, ServeError
from vessels.serve.lane import Done
from vessels.serve.logs import event, failure
from vessels.serve.metrics import show
from vessels.serve.model import ServedModel
from vessels.serve.runs import Answer
from vessels.serve.tickets import Ticket, keyless, refusal, unusable

COLD: Final = "cold"
"""The state of a model that has no environment, but can be given one when it is asked for."""

_LEAST_PAUSE = 0.001


class Host:
    """Environments of ``models`` on ``machine``, and the requests that they answer.

    ``on_defect`` is called when the scheduler fails, after which nothing is answered any more;
    ``on_ready`` with each environment that answers from now on, and ``on_end`` with each that has
    ended before the host did, and how. Raises :class:`UsageError` where a model does not fit the
    machine.
    """

    def __init__(
        self,
        models: Iterable[ServedModel],
        machine: Machine,
        tools: Tools,
        *,
        on_defect: Callable[[], None] = lambda: None,
        on_ready: Callable[[Environment], None] = lambda environment: None,
        on_end: Callable[[Environment, str], None] = lambda environment, how: None,
    ) -> None:
        self.models: Mapping[str, ServedModel] = {m.name: m for m in models}
        self.on_defect = on_defect
        self._on_ready = on_ready
        self._on_end = on_end
        self._tools = tools
        self._scheduler = Scheduler(machine, [m.spec for m in self.models.values()])
        self._environments: dict[int, Environment] = {}
        self._lives: dict[int, asyncio.Task[None]] = {}
        self._runs: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._queued: dict[int, Ticket] = {}
        """Those that the scheduler has, and may still decide about."""
        self._open: set[Ticket] = set()
        """All that are not answered, or whose answer nobody has taken yet."""
        self._waiting = dict.fromkeys(self.models, 0)
        self._able: set[str] = set()
        """Models of which an environment can be had, as far as is known."""
        self._unusable: set[str] = set()
        """Models whose file or key was refused when one was last started."""
        self._alarm: asyncio.TimerHandle | None = None
        self._closed = False
        self.failed = False
        """Whether the scheduler failed."""
        show(tools.metrics, self)

    def start(self) -> None:
        """Begin: what is to run from the start is started."""
        self._tell(Tick(_now()))
        self._able |= {name for name in self.models if not self.environments(name)}

    async def close(self) -> None:
        """End all environments; who still waits is told that the server stops."""
        self._closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        tasks = [*self._lives.values(), *self._runs]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._refuse_all(ServeError(Code.STOPPING, "the server has been shut down."))

    def environments(self, model: str) -> list[Environment]:
        """Those of ``model`` that are not gone, in the order of their launch."""
        return [e for e in self._environments.values() if e.model.name == model]

    def state(self, model: str) -> str:
        """Where ``model`` stands, by the environment of it that is furthest."""
        states = {e.state for e in self.environments(model) if not e.stopping}
        for state in (State.READY, State.KEYLESS, State.STARTING):
            if state in states:
                return str(state)
        return COLD if model in self._able else str(State.DOWN)

    def is_ready(self, model: str) -> bool:
        """Whether an environment of ``model`` serves, or will if it is asked for.

        Not so while the first one starts, and after one got no key or ended unasked.
        """
        return not self._closed and (self.is_serving(model) or model in self._able)

    def is_serving(self, model: str) -> bool:
        """Whether an environment of ``model`` answers requests now."""
        return self.state(model) == State.READY

    def waiting(self, model: str) -> int:
        """How many wait for predictions, those in a run included."""
        return self._waiting[model]

    def queue_length(self, model: str) -> int:
        """How many requests for ``model`` the scheduler has in a queue."""
        return self._scheduler.queue_length(model)

    def size(self, model: str) -> int:
        """Bytes that the environments of ``model`` are accounted for."""
        sizes = self._scheduler.account.by_environment
        return sum(sizes.get(e.number, 0) for e in self.environments(model))

    @property
    def account(self) -> EpcAccount:
        """What each environment takes of the machine's trusted memory."""
        return self._scheduler.account

    def find(self, model: str, identity: str | None) -> Environment:
        """The environment that a request names, or the most recent one if it names none.

        Raises :class:`ServeError` where it is gone, or does not get its key.
        """
        found = [
            e
            for e in self.environments(model)
            if not e.stopping
            and e.state is not State.DOWN
            and (identity is None or e.identity == identity)
        ]
        if not found:
            raise unusable() if model in self._unusable else refusal(Reason.ELSEWHERE)
        environment = max(found, key=lambda e: (e.state is State.READY, e.number))
        if environment.refused_key:
            raise keyless()
        return environment

    async def evidence(self, model: str, nonce: bytes, deadline: float | None) -> bytes:
        """Evidence of an environment of ``model``, encoded; one is launched if there is none.

        ``deadline`` is a time of :func:`time.monotonic`. Raises :class:`ServeError`.
        """
        ticket = self._ticket(model)
        environment: Environment = await self._answered(
            ticket, Wanted(ticket.asked, ticket.number, model, deadline)
        )
        try:
            return await environment.evidence(nonce)
        except ServeError:
            if model in self._unusable and not self.is_serving(model):
                raise unusable() from None
            if not environment.stopping:
                raise
        # It had to go just then; the next one is of no less use.
        return await self.evidence(model, nonce, deadline)

    def foresee(self, environment: Environment, deadline: float | None) -> None:
        """Raise :class:`ServeError` if a request would be refused, before it is read at all."""
        arrival = Arrived(_now(), 0, environment.number, deadline)
        try:
            found = self._scheduler.foresee(arrival)
        except Exception as error:
            self._give_up(error)
            raise ServeError(Code.INTERNAL, "the server failed; its log has more.") from None
        if found is not None:
            self._tools.metrics.shed.labels(environment.model.name, str(found.reason)).inc()
            raise refusal(found.reason, found.retry_after)

    async def predict(
        self, environment: Environment, sealed: bytes, deadline: float | None
    ) -> Done[bytes]:
        """The sealed answer to a sealed request. Raises :class:`ServeError`."""
        model = environment.model.name
        if self._environments.get(environment.number) is not environment:
            raise refusal(Reason.ELSEWHERE)
        ticket = self._ticket(model, environment.number, sealed)
        self._waiting[model] += 1
        try:
            done: Done[bytes] = await self._answered(
                ticket, Arrived(ticket.asked, ticket.number, environment.number, deadline)
            )
            return done
        finally:
            self._waiting[model] -= 1

    def keyless(self, environment: Environment) -> None:
        """It does not get its key for now: who waits for it need not."""
        self._able.discard(environment.model.name)
        for ticket in [t for t in self._queued.values() if t.environment == environment.number]:
            ticket.refuse(keyless())

    def ready(self, environment: Environment) -> None:
        """It answers requests."""
        self._able.add(environment.model.name)
        self._unusable.discard(environment.model.name)
        self._tell(Ready(_now(), environment.number))
        self._on_ready(environment)

    def larger(self, environment: Environment, size: int) -> None:
        """It holds more than was planned: the account says so from now on."""
        account = self._scheduler.account
        planned = account.by_environment[environment.number]
        if size > planned:
            event(
                "environment_larger_than_planned", level=logging.ERROR,
                model=environment.model.name, environment=environment.number, planned=planned,
                size=size,
            )  # fmt: skip
            account.correct(environment.number, size)
            self._tell(Tick(_now()))

    def _ticket(self, model: str, environment: int = 0, sealed: bytes = b"") -> Ticket:
        if self._closed:
            raise ServeError(Code.STOPPING, "the server is being shut down.")
        future = asyncio.get_running_loop().create_future()
        ticket = Ticket(next(self._numbers), model, environment, sealed, _now(), future)
        self._open.add(ticket)
        self._queued[ticket.number] = ticket
        return ticket

    async def _answered(self, ticket: Ticket, arrival: Event) -> Any:
        try:
            self._tell(arrival)
            return await ticket.future
        finally:
            self._open.discard(ticket)
            if self._queued.pop(ticket.number, None) is not None:
                self._tell(Gone(_now(), ticket.number))

    def _tell(self, happened: Event) -> None:
        """Tell the scheduler, and begin what it decides."""
        if self._closed:
            return
        try:
            for decision in self._scheduler.handle(happened):
                self._do(decision)
            due = self._scheduler.wake()
        except Exception as error:
            self._give_up(error)
            return
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if due is not None:
            pause = max(due - _now(), _LEAST_PAUSE)
            self._alarm = asyncio.get_running_loop().call_later(pause, self._wake)

    def _wake(self) -> None:
        self._tell(Tick(_now()))

    def _give_up(self, error: Exception) -> None:
        """Without a scheduler there are no answers: say so to everybody, and have it all end."""
        failure("scheduling_failed", error)
        self._closed = self.failed = True
        self._refuse_all(ServeError(Code.INTERNAL, "the server failed; its log has more."))
        self.on_defect()

    def _refuse_all(self, error: ServeError) -> None:
        self._queued.clear()
        for ticket in list(self._open):
            ticket.refuse(error)

    def _do(self, decision: Decision) -> None:
        """Begin what was decided. Nothing here tells the scheduler anything."""
        match decision:
            case Launch():
                self._launch(decision)
            case Stop(number):
                environment = self._environments[number]
                self._tools.metrics.evictions.labels(environment.model.name).inc()
                environment.stop()
            case Assign(number, environment_number):
                self._queued.pop(number).give(self._environments[environment_number])
            case Run():
                self._run(decision)
            case Refuse(number, reason, retry_after):
                ticket = self._queued.pop(number)
                self._tools.metrics.shed.labels(ticket.model, str(reason)).inc()
                ticket.refuse(refusal(reason, retry_after))

    def _launch(self, decision: Launch) -> None:
        model = self.models[decision.model]
        bounded = self.account.capacity is not None
        environment = Environment(
            decision.environment, model, decision.shape, self._tools, self, modest=bounded
        )
        self._environments[environment.number] = environment
        self._tools.metrics.launches.labels(model.name).inc()
        life = asyncio.ensure_future(self._live(environment))
        self._lives[environment.number] = life

    async def _live(self, environment: Environment) -> None:
        number, model = environment.number, environment.model.name
        try:
            why = await environment.live()
        except VesselsError as error:
            why = str(error)
            if isinstance(error, SealedError | KeyFileError):
                self._unusable.add(model)
        except Exception as error:
            failure("supervision_failed", error, model=model)
            why = "a defect of the server"
        del self._environments[number], self._lives[number]
        if environment.stopping:
            if environment.pool_size:
                # It had its key.
                self._able.add(model)
            event("enclave_stopped", model=model, environment=number)
        else:
            self._able.discard(model)
            self._tools.metrics.ends.labels(model).inc()
            event("enclave_ended", level=logging.ERROR, model=model, environment=number, why=why)
        self._tell(Ended(_now(), number))
        self._on_end(environment, why)

    def _run(self, decision: Run) -> None:
        environment = self._environments[decision.environment]
        tickets = [self._queued.pop(number) for number in decision.tickets]
        name = environment.model.name
        self._tools.metrics.batch_size.labels(name).observe(len(tickets))
        # Begun here and now, not when the loop has time for it.
        run = environment.run([t.sealed for t in tickets])
        task = asyncio.ensure_future(self._finish(environment, tickets, run))
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)

    async def _finish(
        self, environment: Environment, tickets: list[Ticket], run: Awaitable[Done[list[Answer]]]
    ) -> None:
        """Answer a run's requests. If it fails, so has its enclave, whose end is told of then."""
        try:
            done = await run
        except Exception as error:
            if not isinstance(error, ServeError):
                failure("run_failed", error, model=environment.model.name)
                environment.kill()
                error = ServeError(Code.INTERNAL, "the server failed; its log has more.")
            for ticket in tickets:
                ticket.refuse(error)
            return
        now = _now()
        for ticket, answer in zip(tickets, done.value, strict=True):
            if isinstance(answer, ServeError):
                ticket.refuse(answer)
            else:
                waited = now - ticket.asked - done.working_seconds
                ticket.give(Done(answer, max(0.0, waited), done.working_seconds))
        # A prediction has one size, which errors and descriptions hardly ever have.
        computed = sum(
            isinstance(answer, bytes) and len(answer) == environment.build.response_size
            for answer in done.value
        )
        self._tell(Finished(now, environment.number, computed))


def _now() -> float:
    return time.monotonic()
