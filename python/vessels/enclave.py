"""An enclave process in this program's own hands: predictions from plain inputs to plain outputs.

Key and requests are sealed on the way all the same (``docs/messages.md``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vessels.binaries import find_enclave_binary
from vessels.closing import Closing
from vessels.enclave_process import Array, EnclaveClaims, EnclaveProcess, Ready
from vessels.errors import EnclaveError, RequestError, UsageError
from vessels.memory import EnclaveMemory
from vessels.ports import Port
from vessels.seal import KEY_SIZE, load_key, read_header
from vessels.sealed_messages import SUITE, RequestSealer, seal_key

__all__ = [
    "SIMULATION_NOTICE",
    "Array",
    "Enclave",
    "EnclaveClaims",
    "EnclaveProcess",
    "Ready",
    "checked_inputs",
    "find_enclave_binary",
]

log = logging.getLogger("vessels")

SIMULATION_NOTICE = (
    "simulation backend: the enclave runs as an ordinary process and does NOT protect the model, "
    "the inputs or the outputs from this host"
)

_NONCE_SIZE = 32


class Enclave(Closing):
    """A running enclave process with one sealed model, in this program's own hands.

    ``key`` is the 32-byte model key or a key file. ``threads`` may be fewer than the model was
    planned for. ``slots`` is how many predictions :meth:`run_batch` may make at once. ``rung`` is
    the model's plan to use, if not its default. ``command`` is what to start instead of the
    enclave binary: a program, and what comes before the enclave's own arguments. Opening refuses
    an altered model (:class:`SealedError`), a wrong key (:class:`KeyFileError`) and anything the
    process cannot do (:class:`EnclaveError`).

    Key and requests are sealed to the process's public key, as over a network. That key is not
    attested: the process is a child of this one, and is not protected from it.

    >>> with Enclave("resnet50.vessel", key="resnet50.key") as enclave:  # doctest: +SKIP
    ...     outputs = enclave.run({"input": image})
    """

    def __init__(
        self,
        path: str | Path,
        *,
        key: bytes | str | Path,
        threads: int | None = None,
        slots: int = 1,
        rung: int | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        secret = key if isinstance(key, bytes) else load_key(Path(key))
        if len(secret) != KEY_SIZE:
            raise UsageError(f"a model key has {KEY_SIZE} bytes, this one {len(secret)}.")
        header = read_header(Path(path))
        self.inputs = Port.of(header.inputs)
        self.outputs = Port.of(header.outputs)
        self._process = EnclaveProcess(
            path, threads=threads, slots=slots, rung=rung, command=command
        )
        self.path = self._process.path
        log.warning(SIMULATION_NOTICE)
        try:
            claims = self._process.claims(os.urandom(_NONCE_SIZE))
            if claims.suite != SUITE:
                raise EnclaveError(f"the enclave uses HPKE suite {claims.suite.hex()}.")
            sealed = seal_key(claims.public_key, claims.model_digest, secret)
            self.ready = self._process.give_key(sealed)
        except BaseException:
            self.close()
            raise
        self._sealer = RequestSealer(claims.public_key, claims.model_digest)

    @property
    def pid(self) -> int:
        """Process id of the enclave process."""
        return self._process.pid

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One prediction: all inputs by name to all outputs by name.

        Raises :class:`RequestError` for inputs that do not fit, before anything is sent, and for
        a run the enclave refuses; the enclave stays usable. Raises :class:`EnclaveError` when
        the process dies.
        """
        request, opener = self._sealer.seal_predict(self._checked(inputs))
        return opener.open(self._process.exchange(request))

    def run_batch(self, requests: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Predictions that are made together: each streamed chunk is decrypted once for all.

        There are at most as many as slots. Each is what :meth:`run` gives, to the bit. Raises
        :class:`RequestError` for the first that the enclave refuses.
        """
        sealed = [self._sealer.seal_predict(self._checked(inputs)) for inputs in requests]
        answers = self._process.exchange_batch([request for request, _ in sealed])
        outputs = []
        for (_, opener), answer in zip(sealed, answers, strict=True):
            if isinstance(answer, RequestError):
                raise answer
            outputs.append(opener.open(answer))
        return outputs

    def sealed(self, inputs: Mapping[str, Array]) -> bytes:
        """A request as :meth:`run` seals it, for :meth:`exchange`: to measure one without both."""
        return self._sealer.seal_predict(self._checked(inputs))[0]

    def exchange(self, request: bytes) -> bytes:
        """The sealed answer to a sealed request, which may be given again: it changes nothing."""
        return self._process.exchange(request)

    def run_timed(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], Array]:
        """As :meth:`run`, and the nanoseconds of each instruction (uint64, ``[instruction]``)."""
        request, opener = self._sealer.seal_predict(self._checked(inputs))
        sealed, times = self._process.exchange_timed(request)
        outputs = opener.open(sealed)
        assert times is not None
        return outputs, times

    def _checked(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        arrays = checked_inputs(inputs, self.inputs)
        return {p.name: a for p, a in zip(self.inputs, arrays, strict=True)}

    def memory(self) -> EnclaveMemory:
        """Memory the process holds now."""
        return self._process.memory()

    def kill(self) -> None:
        """End the process at once: a prediction under way in another thread fails."""
        self._process.kill()

    def close(self) -> None:
        """End the process; harmless when it has ended already."""
        self._process.close()


def checked_inputs(inputs: Mapping[str, Array], ports: tuple[Port, ...]) -> list[Array]:
    """The inputs in the order of ``ports``, C-contiguous; any values, NaN too.

    Raises :class:`RequestError` that names every input that is missing, unknown, or of the wrong
    dtype or shape.
    """
    problems: list[str] = []
    arrays: list[Array] = []
    for port in ports:
        if port.name not in inputs:
            problems.append(f"input {port.name!r} is missing ({port.describe()})")
            continue
        array = np.asarray(inputs[port.name])
        if array.dtype != port.dtype:
            problems.append(
                f"input {port.name!r} is {array.dtype}, the model takes {port.dtype}: "
                f"convert it with .astype(numpy.{port.dtype.name})"
            )
        elif array.shape != port.shape:
            problems.append(
                f"input {port.name!r} has shape {_shape(array.shape)}, "
                f"the model was built for {_shape(port.shape)}"
            )
        else:
            arrays.append(np.ascontiguousarray(array).reshape(array.shape))
    known = {p.name for p in ports}
    names = ", ".join(repr(p.name) for p in ports)
    problems += [
        f"there is no input {name!r}; the model has {names}" for name in inputs if name not in known
    ]
    if problems:
        raise RequestError("; ".join(problems) + ".")
    return arrays


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
