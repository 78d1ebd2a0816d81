"""What is closed at the end of a ``with``, and child processes at their end."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from typing import Any, Self


class Closing(ABC):
    """A context manager that closes itself, and nothing else, at its end."""

    @abstractmethod
    def close(self) -> None:
        """Give up what it holds; harmless when that was done before."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def await_end(process: subprocess.Popen[Any], seconds: float) -> int:
    """The exit code of ``process``, which is killed if it does not end by itself in ``seconds``."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
