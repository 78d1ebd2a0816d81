"""What the proxy's two APIs share: models as the protocol sees them, and what errors mean there.

A model's version is the digest of its sealed build, in hexadecimal: a program that asks for one
gets exactly that build or a refusal, and every answer says which build gave it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus

import grpc

from vessels.client import AsyncClient, AttestedModel
from vessels.enclave import Array
from vessels.errors import (
    AttestationError,
    DeadlineError,
    RequestError,
    ServerError,
    VesselsError,
)

PLATFORM = "vessels_onnx"
EXTENSIONS = ("binary_tensor_data",)

UNSUPPORTED_PARAMETERS = frozenset({
    "classification", "sequence_id", "sequence_start", "sequence_end", "shared_memory_region",
    "shared_memory_byte_size", "shared_memory_offset",
})  # fmt: skip
"""Extensions that would change what an answer holds; other parameters change nothing here."""

_log = logging.getLogger("vessels")


class UnknownModelError(RequestError):
    """A program asked for a model or a version that is not there."""


class TooLargeError(RequestError):
    """A program sent more than the proxy takes."""


class Gateway:
    """The models of a server that a client's policy accepts, under their names in the policy."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def ready(self) -> bool:
        """Whether each model of the policy that the server has is attested and ready, one at least.

        A policy may name models of other servers too.
        """
        found = 0
        for name in self._client.policy.models:
            try:
                found += await self._client.ready(name)
            except ServerError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    return False
            except VesselsError:
                return False
        return found > 0

    async def model_ready(self, name: str, version: str) -> bool:
        """Whether the model is attested, and its server says that it is ready."""
        try:
            await self.model(name, version)
            return await self._client.ready(name)
        except VesselsError:
            return False

    async def model(self, name: str, version: str, timeout: float | None = None) -> AttestedModel:
        """The attested model ``name``, of build ``version`` unless that is empty."""
        self._check_known(name)
        return _of_version(await self._client.describe(name, timeout=timeout), name, version)

    async def infer(
        self,
        name: str,
        version: str,
        inputs: Mapping[str, Array],
        wanted: Sequence[str],
        timeout: float | None = None,
    ) -> tuple[AttestedModel, dict[str, Array]]:
        """One prediction, and which model gave it; the outputs ``wanted``, or all if none is.

        The answer is of use for ``timeout`` seconds.
        """
        began = time.monotonic()
        model = await self.model(name, version, timeout)
        _check_outputs(model, wanted)
        if timeout is not None:
            timeout -= time.monotonic() - began
        outputs, answered = await self._client.predict_attested(name, inputs, timeout=timeout)
        # Between the two the server may have begun to run another build.
        _of_version(answered, name, version)
        _check_outputs(answered, wanted)
        return answered, {n: outputs[n] for n in wanted} if wanted else outputs

    def _check_known(self, name: str) -> None:
        if name not in self._client.policy.models:
            known = ", ".join(self._client.policy.models)
            raise UnknownModelError(f"the policy knows no model {name!r:.80}, but {known}.")


def version_of(model: AttestedModel) -> str:
    """The version of ``model`` as the protocol sees it."""
    return model.verified.claims.model_digest.hex()


def check_parameters(where: str, names: Sequence[str]) -> None:
    """Refuse what would change an answer's meaning and is not there."""
    if refused := sorted(UNSUPPORTED_PARAMETERS.intersection(names)):
        raise RequestError(f"{where}: not supported: {', '.join(refused)}.")


def timeout_of(microseconds: object) -> float | None:
    """The seconds that the parameter ``timeout`` of a request gives it; 0 and none are no limit."""
    if microseconds is None:
        return None
    # A JSON true is a Python integer too.
    if type(microseconds) is not int or not 0 <= microseconds < 1 << 63:
        raise RequestError("timeout must be a whole number of microseconds.")
    return microseconds / 1e6 or None


def meaning(error: Exception) -> tuple[HTTPStatus, grpc.StatusCode, str]:
    """What ``error`` is to a local program: HTTP's and gRPC's status, and a message."""
    match error:
        case UnknownModelError():
            return HTTPStatus.NOT_FOUND, grpc.StatusCode.NOT_FOUND, str(error)
        case TooLargeError():
            code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            return code, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
        case RequestError():
            return HTTPStatus.BAD_REQUEST, grpc.StatusCode.INVALID_ARGUMENT, str(error)
        case AttestationError():
            # Not to be tried again in the hope of better luck, as UNAVAILABLE would.
            return HTTPStatus.BAD_GATEWAY, grpc.StatusCode.FAILED_PRECONDITION, str(error)
        case ServerError(status=HTTPStatus.NOT_FOUND):
            return HTTPStatus.NOT_FOUND, grpc.StatusCode.NOT_FOUND, str(error)
        case ServerError(status=HTTPStatus.TOO_MANY_REQUESTS):
            code = HTTPStatus.TOO_MANY_REQUESTS
            return code, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
        case DeadlineError():
            return HTTPStatus.GATEWAY_TIMEOUT, grpc.StatusCode.DEADLINE_EXCEEDED, str(error)
        case ServerError():
            return HTTPStatus.SERVICE_UNAVAILABLE, grpc.StatusCode.UNAVAILABLE, str(error)
        case VesselsError():
            return HTTPStatus.BAD_GATEWAY, grpc.StatusCode.FAILED_PRECONDITION, str(error)
    # A defect. Its message may quote tensors, so only its kind and place are told.
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last else "nowhere"
    _log.error("internal error of the proxy: %s at %s", type(error).__name__, place)
    return HTTPStatus.INTERNAL_SERVER_ERROR, grpc.StatusCode.INTERNAL, "internal error"


def _of_version(model: AttestedModel, name: str, version: str) -> AttestedModel:
    if version not in ("", version_of(model)):
        raise UnknownModelError(
            f"model {name!r} is there in version {version_of(model)}, not {version!r:.80}."
        )
    return model


def _check_outputs(model: AttestedModel, wanted: Sequence[str]) -> None:
    names = [p.name for p in model.outputs]
    if len(set(wanted)) != len(wanted):
        raise RequestError("an output is asked for twice.")
    if unknown := [w for w in wanted if w not in names]:
        raise RequestError(f"there is no output {unknown[0]!r:.80}; the model has {names}.")
