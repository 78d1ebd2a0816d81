"""The clients: each asks one model for a while, then starts over with another.

Questions in flight are all different, and so are their right answers: an answer that belongs to
another question, another model or another time is wrong.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable

import httpcore2

from benchmarks.chaos.pauses import Pauses
from benchmarks.chaos.rules import Rule, Verdict
from benchmarks.chaos.stage import Stage
from benchmarks.load.sealed import Question, Tensors
from vessels.client import AsyncClient
from vessels.errors import DeadlineError, ServerError, VesselsError

SILENCE_SECONDS = 60.0
"""What a server never takes to say anything, evidence of a model that waits for room included."""

LONGEST_SECONDS = 120.0
"""What no request takes, attestation, a second try and all."""

DEADLINES = (None, None, 0.3, 1.0, 3.0, 10.0)
LATE_SECONDS = 5.0
"""How long after its deadline a request may end on a busy machine, but for pauses of our own."""

RIGHT = "right"
DEADLINE = "deadline"
UNREACHABLE = "unreachable"
_NO_ANSWER = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException)

_EXPLAINED = {
    "enclave_ended", "no_evidence", "no_room", "not_opened", "not_ready", "overloaded",
}  # fmt: skip
_VISIT_COUNTS = (5, 60)
_PAUSE_SECONDS = 0.01
_PAUSE_AFTER_ERROR_SECONDS = 0.1


class Asking:
    """Many clients of the models of ``stage`` at ``url``.

    ``was_away`` tells whether the server was away at some moment between two times; ``on_right``
    is told the model of each right answer, and when it was asked for.
    """

    def __init__(
        self,
        stage: Stage,
        url: str,
        verdict: Verdict,
        pauses: Pauses,
        *,
        was_away: Callable[[float, float], bool],
        on_right: Callable[[str, float], None],
        seed: int,
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.right_by_model: Counter[str] = Counter()
        self.longest_seconds = 0.0
        self.stopped = False
        self._stage = stage
        self._url = url
        self._verdict = verdict
        self._pauses = pauses
        self._was_away = was_away
        self._on_right = on_right
        self._seed = seed
        self._questions = {m.name: deque(m.questions) for m in stage.models}

    @property
    def count(self) -> int:
        """Requests that have ended."""
        return self.outcomes.total()

    async def ask_on(self, number: int) -> None:
        """Be one client after the other, until stopped."""
        chance = random.Random(f"{self._seed} {number}")
        while not self.stopped:
            model = chance.choice(self._stage.models).name
            async with AsyncClient(
                self._url, policy=self._stage.policy, timeout=SILENCE_SECONDS
            ) as client:
                for _ in range(chance.randint(*_VISIT_COUNTS)):
                    if self.stopped:
                        return
                    good = await self._ask(client, model, chance.choice(DEADLINES))
                    pause = _PAUSE_SECONDS if good else _PAUSE_AFTER_ERROR_SECONDS
                    await asyncio.sleep(chance.expovariate(1 / pause))

    async def _ask(self, client: AsyncClient, model: str, deadline: float | None) -> bool:
        """One request; whether its answer came, and was right."""
        waiting = self._questions[model]
        question = waiting.popleft()
        began, paused = time.monotonic(), self._pauses.total_seconds
        outcome = await self._outcome(client, model, question, deadline, began)
        waiting.append(question)
        seconds = time.monotonic() - began
        self.outcomes[outcome] += 1
        self.longest_seconds = max(self.longest_seconds, seconds)
        late = LATE_SECONDS + self._pauses.total_seconds - paused
        if deadline is not None and seconds > deadline + late:
            self._verdict.broken(
                Rule.ANSWERED, f"{model}: {outcome} {seconds:.1f} s after, due in {deadline} s"
            )
        if outcome != RIGHT:
            return False
        self.right_by_model[model] += 1
        self._on_right(model, began)
        return True

    async def _outcome(
        self,
        client: AsyncClient,
        model: str,
        question: Question,
        deadline: float | None,
        began: float,
    ) -> str:
        broken = self._verdict.broken
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                outputs = await client.predict(model, question.inputs, timeout=deadline)
        except TimeoutError:
            broken(Rule.ANSWERED, f"{model}: nothing after {LONGEST_SECONDS} s")
            return "hung"
        except DeadlineError:
            return DEADLINE
        except ServerError as error:
            return self._refused(model, error, began)
        except VesselsError as error:
            broken(Rule.ERRORS, f"{model}: {error!r}")
            return type(error).__name__
        if not question.is_right(outputs):
            broken(Rule.ANSWERS, f"{model}: {self._whose(question, outputs)}")
            return "wrong"
        return RIGHT

    def _refused(self, model: str, error: ServerError, began: float) -> str:
        """What an error of the server's is, which must be one that is to be expected."""
        broken = self._verdict.broken
        if error.status is not None:
            outcome = f"{error.status} {error.code}"
            if error.code not in _EXPLAINED:
                broken(Rule.ERRORS, f"{model}: {error}")
            return outcome
        cause = error.__cause__
        away = self._was_away(began, time.monotonic())
        if isinstance(cause, httpcore2.TimeoutException) and not isinstance(
            cause, httpcore2.ConnectTimeout
        ):
            broken(Rule.ANSWERED, f"{model}: {error}")
            return "silent"
        if not isinstance(cause, _NO_ANSWER):
            broken(Rule.ERRORS, f"{model}: {error}")
            return "broken answer"
        if not away:
            broken(Rule.ERRORS, f"{model}: {cause!r}, while the server was there")
        return UNREACHABLE

    def _whose(self, asked: Question, outputs: Tensors) -> str:
        """What is known of a wrong answer."""
        for model in self._stage.models:
            for number, question in enumerate(model.questions):
                if question is not asked and question.is_right(outputs):
                    return f"the answer to question {number} of {model.name}"
        return "the answer to no question"
