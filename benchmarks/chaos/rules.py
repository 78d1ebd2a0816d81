"""What must hold whatever is killed, and what did not."""

from __future__ import annotations

import time
from collections import Counter
from enum import StrEnum
from typing import Final

_MOST_EXAMPLES = 5


class Rule(StrEnum):
    """Each must hold at every moment of a run; what its text says."""

    ANSWERS = "no answer is wrong"
    ANSWERED = "every request is answered or refused, in time"
    ERRORS = "every error is one that a kill or a lack of memory explains"
    ACCOUNT = "the account is exact, and within the capacity"
    MEMORY = "enclaves hold no more than they are accounted for"
    ENDS = "nothing ends or fails by itself"
    ORPHANS = "no enclave outlives its server"
    CAPACITY = "capacity comes back"
    CHAOS = "the run was what it says: kills, evictions, answers of each model"


class Verdict:
    """The rules that were broken: how often, and the first few times in words."""

    def __init__(self) -> None:
        self.counts: Counter[Rule] = Counter()
        self.examples: dict[Rule, list[str]] = {}
        self.began: Final = time.monotonic()

    @property
    def held(self) -> bool:
        """Whether none was broken."""
        return not self.counts

    def broken(self, rule: Rule, how: str) -> None:
        """``rule`` was broken just now."""
        self.counts[rule] += 1
        examples = self.examples.setdefault(rule, [])
        if len(examples) < _MOST_EXAMPLES:
            examples.append(f"at {time.monotonic() - self.began:.2f} s: {how}")
