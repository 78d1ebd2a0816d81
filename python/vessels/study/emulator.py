"""The EPC emulator from the host's side: starting it, asking it, putting enclaves into it.

``vessels-epc`` holds the pools of several enclaves in one limited set of 4 KiB pages, and really
pages and encrypts beyond it; :mod:`vessels.study.replacement` states its policy. It ends with
the process that started it, however that ends. Counts of pages are counts, sizes are bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from vessels.binaries import find_emulator_binary
from vessels.closing import Closing, await_end
from vessels.enclave import Enclave
from vessels.errors import EmulatorError, EnclaveError
from vessels.study.result import PAGE_SIZE, FaultCost

MINIMUM_PAGE_COUNT = 64
"""An EPC of fewer pages is not asked for: a few batches of the replacement would be all of it."""

_ANSWER_SECONDS = 60.0
_COST_SECONDS = 120.0
_CLOSE_SECONDS = 5.0

Tampering = Literal["flip", "replay"]


@dataclass(frozen=True)
class TenantCounters:
    """What one enclave did since it began; kept after its end.

    ``first``: touches of pages never touched before; ``fetched``: of evicted ones; ``soft``: of
    ones that were only unmapped. ``refused`` says why the emulator ended it, if it did.
    """

    id: int
    pid: int
    pages: int
    mapped: int
    unmapped: int
    first: int
    fetched: int
    soft: int
    evicted: int
    alive: bool
    refused: str | None = None


@dataclass(frozen=True)
class Counters:
    """The emulator's counters since it began; ``capacity`` and ``used`` in pages."""

    capacity: int
    used: int
    peak_used: int
    handler_ns: int
    tenants: tuple[TenantCounters, ...]

    @property
    def fetched(self) -> int:
        """Evicted pages brought back, all tenants together."""
        return sum(t.fetched for t in self.tenants)

    @property
    def soft(self) -> int:
        """Soft faults, all tenants together."""
        return sum(t.soft for t in self.tenants)

    def tenant(self, pid: int) -> TenantCounters | None:
        """The tenant of process ``pid``."""
        return next((t for t in self.tenants if t.pid == pid), None)


@contextlib.contextmanager
def one_processor() -> Iterator[None]:
    """Processes started within it share one processor.

    A kernel answers a fault on the processor where it happened. So does the emulator then, and
    no other one has to be woken for it, which in a virtual machine costs as much again.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def fault_cost(page_count: int = 4096) -> FaultCost:
    """Measures what the emulator's faults cost on this machine, on one processor, unpadded.

    Raises :class:`EmulatorError` where the emulator cannot work, saying why.
    """
    command = [str(find_emulator_binary()), "cost", "--epc-pages", str(page_count)]
    try:
        with one_processor():
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_COST_SECONDS
            )
    except OSError as error:
        raise EmulatorError(f"cannot start {command[0]}: {error.strerror or error}.") from error
    except subprocess.TimeoutExpired as error:
        raise EmulatorError(
            f"the EPC emulator did not measure its faults within {_COST_SECONDS:.0f} s."
        ) from error
    if done.returncode != 0:
        raise EmulatorError(f"the EPC emulator failed: {_last_words(done.stderr)}")
    try:
        found = json.loads(done.stdout)
        if not found["available"]:
            raise EmulatorError(f"the EPC emulator cannot work here: {found['why']}")
        return FaultCost(float(found["fault_ns"]), float(found["soft_fault_ns"]), 0.0)
    except (ValueError, KeyError, TypeError) as error:
        raise EmulatorError(
            f"{command[0]} measured its faults and said what is not understood. "
            "Are the package and the binary of the same version?"
        ) from error


class Emulator(Closing):
    """A running EPC of ``epc_size`` bytes for any number of enclaves; a context manager.

    ``padding_ns`` is added to each fault on a page that is not in it. ``mode`` is ``"root"`` or
    ``"user"``. Raises :class:`EmulatorError` where it cannot work.

    >>> with Emulator(64 << 20) as emulator:  # doctest: +SKIP
    ...     with emulator.enclave("resnet50.vessel", key="resnet50.key") as enclave:
    ...         outputs = emulator.run(enclave, {"input": image})
    ...     emulator.counters().fetched
    """

    def __init__(self, epc_size: int, padding_ns: float = 0.0) -> None:
        binary = str(find_emulator_binary())
        self._folder = tempfile.TemporaryDirectory(prefix="vessels-")
        self._socket = str(Path(self._folder.name) / "epc")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._pending = b""
        # One question at a time, however many threads ask.
        self._turn = threading.Lock()
        # Its standard input ends when this process does, and the emulator with it.
        command = [
            binary, "serve", "--socket", self._socket, "--epc-pages", str(epc_size // PAGE_SIZE),
            "--padding-ns", str(round(padding_ns)),
        ]  # fmt: skip
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
            )
        except OSError as error:
            self._errors.close()
            self._folder.cleanup()
            raise EmulatorError(f"cannot start {binary}: {error.strerror or error}.") from error
        self.command = (binary, "enclave", "--socket", self._socket, "--")
        """What to start for an enclave whose pool lies in this EPC."""
        try:
            ready = self._answer("its start")
            if ready.get("ready") is not True:
                raise EmulatorError(f"the EPC emulator cannot work here: {ready.get('why', ready)}")
            self.mode: str = ready["mode"]
        except BaseException:
            self.close()
            raise

    def enclave(
        self, path: str | Path, *, key: bytes | str | Path, threads: int | None = None
    ) -> Enclave:
        """An enclave whose pool lies in this EPC."""
        return Enclave(path, key=key, threads=threads, command=self.command)

    def run(self, enclave: Enclave, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """One prediction of an enclave in this EPC.

        Raises :class:`EmulatorError` when the emulator ended the enclave over a page that was
        altered outside.
        """
        try:
            return enclave.run(inputs)
        except EnclaveError as error:
            if (why := self._refusal(enclave.pid)) is not None:
                raise EmulatorError(
                    f"the EPC emulator ended the enclave of {enclave.path}: {why}."
                ) from error
            raise

    def _refusal(self, pid: int) -> str | None:
        """Why the emulator ended process ``pid``, if it did."""
        try:
            tenant = self.counters().tenant(pid)
        except EmulatorError:
            # Then the enclave has lost its memory because the emulator died.
            return None
        return None if tenant is None else tenant.refused

    def counters(self) -> Counters:
        """What happened since the start."""
        found = self._ask({"do": "counters"})
        try:
            tenants = tuple(TenantCounters(**t) for t in found["tenants"])
            return Counters(**{**found, "tenants": tenants})
        except (KeyError, TypeError) as error:
            self._broken("its counters", error)

    def set_capacity(self, size: int) -> None:
        """Change the EPC to ``size`` bytes; pages beyond it are evicted at once."""
        self._ask({"do": "capacity", "pages": size // PAGE_SIZE})

    def tamper(self, tenant: int, how: Tampering) -> int:
        """Alter an evicted page of ``tenant`` as an attacker would; gives the page's number.

        ``flip`` changes one bit, ``replay`` puts back an older version that was sealed by the
        emulator itself. Raises :class:`EmulatorError` when there is no such page.
        """
        page: int = self._ask({"do": "tamper", "tenant": tenant, "how": how})["page"]
        return page

    def close(self) -> None:
        """End the emulator; its enclaves must have ended. Harmless when it has ended already."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        await_end(self._process, _CLOSE_SECONDS)
        self._process.stdout.close()
        self._errors.close()
        self._folder.cleanup()

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        if self._process.stdin.closed:
            raise EmulatorError("this EPC emulator has ended; start another.")
        with self._turn:
            # Of one that has died, what it said last is still to be read.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(command).encode() + b"\n")
            found = self._answer(f"the command {command['do']!r}")
        if "error" in found:
            raise EmulatorError(f"the EPC emulator refused {command['do']!r}: {found['error']}")
        return found

    def _answer(self, doing: str) -> dict[str, Any]:
        """The next line of the emulator, a JSON object."""
        line = self._line(doing)
        try:
            found = json.loads(line)
        except ValueError as error:
            self._broken(doing, error)
        if not isinstance(found, dict):
            self._broken(doing, None)
        return found

    def _line(self, doing: str) -> bytes:
        assert self._process.stdout is not None
        end = time.monotonic() + _ANSWER_SECONDS
        while b"\n" not in self._pending:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise EmulatorError(
                    f"the EPC emulator did not answer {doing} within {_ANSWER_SECONDS:.0f} s."
                )
            read = os.read(self._process.stdout.fileno(), 1 << 16)
            if not read:
                self._died(doing)
            self._pending += read
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _broken(self, doing: str, error: Exception | None) -> NoReturn:
        raise EmulatorError(
            f"the EPC emulator's answer to {doing} is not understood. "
            "Are the package and the binary of the same version?"
        ) from error

    def _died(self, doing: str) -> NoReturn:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_SECONDS)
        self._errors.seek(0)
        said = _last_words(self._errors.read().decode(errors="replace"))
        raise EmulatorError(
            f"the EPC emulator ended during {doing} (exit code {self._process.returncode}): {said}"
        )


@contextlib.contextmanager
def emulated(
    path: Path, *, key: bytes, threads: int, epc_size: int, padding_ns: float = 0.0, count: int = 1
) -> Iterator[tuple[Emulator, list[Enclave]]]:
    """So many enclaves of one model in an EPC; one of one thread and its emulator share a
    processor."""
    with contextlib.ExitStack() as stack:
        with one_processor() if count == threads == 1 else contextlib.nullcontext():
            emulator = stack.enter_context(Emulator(epc_size, padding_ns))
            enclaves = [
                stack.enter_context(emulator.enclave(path, key=key, threads=threads))
                for _ in range(count)
            ]
        yield emulator, enclaves


def _last_words(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-3:]) or "it said nothing."
