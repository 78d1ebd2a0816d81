"""The host's side of an enclave process: starting it, and passing on what is sealed.

The process boundary is the trust boundary: everything here runs on the host and is not
trusted. ``docs/protocol.md`` specifies what goes over the wire.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import cbor2
import numpy as np

from vessels.binaries import find_enclave_binary
from vessels.closing import Closing, await_end
from vessels.enclave_wire import Kind, Wire
from vessels.errors import (
    EnclaveError,
    KeyFileError,
    RequestError,
    SealedError,
    UsageError,
    VesselsError,
)
from vessels.ladder import MAX_SLOTS
from vessels.lifeline import Lifeline
from vessels.memory import EnclaveMemory, EnclaveMemoryFiles
from vessels.seal import read_header
from vessels.sealed_messages import response_size

log = logging.getLogger("vessels")

Array = np.ndarray[Any, Any]

_CLOSE_TIMEOUT_SECONDS = 5.0
_MAX_SMALL_FRAME_SIZE = 1 << 20

_OTHER_VERSION = "Are the package and the binary of the same version?"

_REFUSALS: Mapping[str, type[VesselsError]] = {
    "key": KeyFileError,
    "header": SealedError,
    "program": SealedError,
    "invalid": SealedError,
    "parameters": SealedError,
    "request": RequestError,
}
"""Exceptions for the enclave's error codes; the others are :class:`EnclaveError`."""

_GOES_ON = ("request", "quote")
"""Error codes after which the enclave serves the next frame."""


@dataclass(frozen=True)
class Ready:
    """What an enclave says when it has opened and validated its model."""

    thread_count: int
    isa: str
    pool_size: int
    instruction_count: int
    slot_count: int


@dataclass(frozen=True)
class EnclaveClaims:
    """What an enclave says of itself, and what its platform signs of it.

    ``tee`` is ``simulation``, ``sgx``, ``tdx`` or ``snp``; ``quote`` is ``None`` in a simulation,
    whose quotes the host makes. The others are those of
    :class:`vessels.attestation.evidence.Claims`.
    """

    tee: str
    suite: bytes
    public_key: bytes
    model_digest: bytes
    nonce: bytes
    quote: bytes | None


class EnclaveProcess(Closing):
    """A running enclave process with one sealed model; a context manager.

    It is the host's side: what it passes on is sealed. The process ends with this one, also when
    that is killed. ``threads`` may be fewer than the model was planned for. ``slots`` is how many
    requests one batch may have. ``rung`` is the model's plan to use, if not its default.
    ``command`` is what to start instead of the enclave binary: a program, and what comes before
    the enclave's own arguments. ``backend`` is ``simulation``, ``gramine`` or ``native``; the
    enclave finds out whether it runs under Gramine if it is not given.

    Any thread may ask; one is answered at a time. Whatever fails but a refused request ends the
    process, and raises :class:`SealedError` (the model was altered), :class:`KeyFileError` (a
    wrong key) or :class:`EnclaveError` (the process cannot do it, or died).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        slots: int = 1,
        rung: int | None = None,
        command: Sequence[str] | None = None,
        backend: str | None = None,
    ) -> None:
        self.path = Path(path)
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}; it must be at least 1.")
        if not 1 <= slots <= MAX_SLOTS:
            raise UsageError(f"slots is {slots}; it must be in 1 to {MAX_SLOTS}.")
        self._threads = threads
        self._slots = slots
        outputs = read_header(self.path).outputs
        command = [*(command or [str(find_enclave_binary())]), "--model", str(self.path)]
        if threads is not None:
            command += ["--threads", str(threads)]
        if slots > 1:
            command += ["--slots", str(slots)]
        if rung is not None:
            command += ["--rung", str(rung)]
        if backend is not None:
            command += ["--backend", backend]
        self._wire = Wire(max(_MAX_SMALL_FRAME_SIZE, response_size(outputs)))
        # One exchange at a time on the wire, however many threads ask.
        self._turn = threading.Lock()
        # What the process says to people; shown only when it fails.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._doing = "opening the model"
        try:
            with self._wire.theirs as theirs:
                self._life = Lifeline(command, stdin=theirs, stdout=theirs, stderr=self._errors)
        except OSError as error:
            self._wire.close()
            self._errors.close()
            raise EnclaveError(f"cannot start {command[0]}: {error.strerror or error}.") from error
        self._process = self._life.process
        # It closes itself to others when it is first spoken to.
        self._memory = EnclaveMemoryFiles(self._process.pid)

    def claims(self, nonce: bytes) -> EnclaveClaims:
        """What the enclave says of itself, with a fresh quote for ``nonce`` where there is one."""
        with self._exchange("evidence"):
            self._wire.send(Kind.EVIDENCE, nonce)
            found = EnclaveClaims(*cbor2.loads(self._receive(Kind.CLAIMS)))
        if found.nonce != nonce:
            raise EnclaveError("the enclave's claims are for another nonce.")
        return found

    def give_key(self, sealed: bytes) -> Ready:
        """Unlock the model with its key, sealed for this enclave; then it answers requests."""
        with self._exchange("opening the model"):
            self._wire.send(Kind.KEY, sealed)
            ready = Ready(*cbor2.loads(self._receive(Kind.READY)))
            if ready.slot_count < self._slots:
                # It would refuse batches, and answer their requests one by one.
                self._broken(f"{ready.slot_count} slots where {self._slots} were asked for")
        if self._threads is not None and ready.thread_count < self._threads:
            log.warning(
                "%s has room for %d threads, not %d: build it with more",
                self.path,
                ready.thread_count,
                self._threads,
            )
        _spread(self.pid)
        return ready

    def exchange(self, sealed: bytes) -> bytes:
        """The sealed answer to a sealed request.

        Raises :class:`RequestError` for one that the enclave cannot open; it stays usable.
        """
        with self._exchange("a prediction"):
            self._wire.send(Kind.RUN, sealed)
            return self._receive(Kind.RESULT)

    def exchange_timed(self, sealed: bytes) -> tuple[bytes, Array | None]:
        """As :meth:`exchange`, and the nanoseconds of each instruction (uint64, ``[instruction]``).

        There are no times where nothing was run to its end.
        """
        with self._exchange("a prediction"):
            self._wire.send(Kind.RUN_TIMED, sealed)
            kind, payload = self._receive_any(Kind.TIMES, Kind.RESULT)
            if kind == Kind.RESULT:
                return payload, None
            return self._receive(Kind.RESULT), np.frombuffer(payload, dtype="<u8")

    def exchange_batch(self, sealed: Sequence[bytes]) -> list[bytes | RequestError]:
        """The sealed answers to sealed requests that are run together, in their order.

        There are at most as many as slots. One that the enclave cannot open is answered by what
        :meth:`exchange` would raise, and keeps nobody else from an answer.
        """
        if len(sealed) > self._slots:
            raise UsageError(f"{len(sealed)} requests do not fit into {self._slots} slots.")
        if not sealed:
            return []
        with self._exchange("a prediction"):
            if len(sealed) > 1:
                self._wire.send(Kind.BATCH, struct.pack("<I", len(sealed)))
            for request in sealed:
                self._wire.send(Kind.RUN, request)
            answers: list[bytes | RequestError] = []
            for _ in sealed:
                try:
                    answers.append(self._receive(Kind.RESULT))
                except RequestError as error:
                    # A whole answer: what follows is awaited as after any other.
                    self._refused = False
                    answers.append(error)
            return answers

    @property
    def pid(self) -> int:
        """Process id of the enclave process."""
        return self._process.pid

    def memory(self) -> EnclaveMemory:
        """Memory the process holds now."""
        return self._memory.read(self.path)

    def kill(self) -> None:
        """End the process at once: a prediction under way in another thread fails."""
        self._process.kill()

    def close(self) -> None:
        """End the process; harmless when it has ended already."""
        self._wire.close()
        self._memory.close()
        await_end(self._process, _CLOSE_TIMEOUT_SECONDS)
        self._life.close()
        self._errors.close()

    @contextlib.contextmanager
    def _exchange(self, doing: str) -> Iterator[None]:
        """One exchange on the wire; if it does not end, the wire is in an unknown state.

        Then the process is ended. A refused request is a whole exchange, after which it goes on.
        """
        with self._turn:
            if self._process.returncode is not None:
                raise EnclaveError("this enclave has ended; start another.")
            self._doing = doing
            self._refused = False
            try:
                yield
            except BaseException:
                if self._refused:
                    raise
                if self._process.poll() is None:
                    self._process.kill()
                self.close()
                raise

    def _receive(self, kind: Kind) -> bytes:
        return self._receive_any(kind)[1]

    def _receive_any(self, *expected: Kind) -> tuple[Kind, bytes]:
        """The next frame, which must be of an expected kind; an ERROR raises what it tells."""
        try:
            kind, payload = self._wire.receive(*expected, Kind.ERROR)
        except EOFError:
            raise self._death() from None
        except ValueError as error:
            self._broken(str(error))
        if kind == Kind.ERROR:
            code, message = cbor2.loads(payload)
            self._refused = code in _GOES_ON
            refusal = _REFUSALS.get(code, EnclaveError)
            raise refusal(f"the enclave refused {self._doing} of {self.path} ({code}): {message}")
        return kind, payload

    def _broken(self, what: str) -> NoReturn:
        raise EnclaveError(
            f"the enclave process broke the protocol during {self._doing}: {what}. {_OTHER_VERSION}"
        ) from None

    def _death(self) -> EnclaveError:
        """How the process ended, and what it said last."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_TIMEOUT_SECONDS)
        code = self._process.returncode
        if code is None:
            how = "closed its connection"
        elif code < 0:
            how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
        else:
            how = f"ended with exit code {code}"
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()[-3:]
        tail = f" It last said: {' / '.join(said)}" if said else ""
        if code == os.EX_USAGE:
            tail += f" {_OTHER_VERSION}"
        return EnclaveError(
            f"the enclave process {how} during {self._doing} of {self.path}; there is no result."
            f"{tail}"
        )


def _spread(pid: int) -> None:
    """Gives each thread of process ``pid`` a core of its own if that takes all cores there are.

    A thread that wakes for a run is else often put on the core of the one that woke it, while
    another core idles: MobileNetV2's 7 ms on two threads became 10. With fewer threads than
    cores the choice is left to the system, which has other enclaves to place.
    """
    with contextlib.suppress(OSError):
        threads = sorted(int(task.name) for task in Path(f"/proc/{pid}/task").iterdir())
        cores = sorted(os.sched_getaffinity(pid))
        if len(threads) > 1 and len(threads) == len(cores):
            for thread, core in zip(threads, cores, strict=True):
                os.sched_setaffinity(thread, {core})
