"""``vessels serve``."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vessels.errors import UsageError
from vessels.serve.limits import Limits
from vessels.serve.logs import Style, use_server_log

if TYPE_CHECKING:
    from vessels.serve.backends import Backend
    from vessels.serve.keys import KeySource

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DEFAULT = Limits()
_log = logging.getLogger("vessels")


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]MODEL.vessel…", help="Sealed models; the file's name is the model's."
        ),
    ],
    keys: Annotated[
        str | None, typer.Option(metavar="URL", help="The model owner's key service.")
    ] = None,
    insecure_key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="MODEL.key",
            help="A key file on this host instead, which can then read the model.",
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to serve; port 0 takes a free one.")
    ] = "127.0.0.1:8080",
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="FILE.pem", help="Speak TLS: the certificate chain.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE.pem", help="Speak TLS: its private key.")
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            metavar="simulation|gramine|native",
            help="Where enclaves run: as plain processes, in SGX, in this confidential guest.",
        ),
    ] = "simulation",
    manifest: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DIR",
            help="For gramine: a model's signed folder, as `vessels gramine` wrote it.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Worker threads of each enclave; at most those it was built for."),
    ] = None,
    connections: Annotated[
        int, typer.Option(min=1, help="Most connections that are served.")
    ] = _DEFAULT.connection_count,
    queue: Annotated[
        int, typer.Option(min=1, help="Most requests that may wait for one model.")
    ] = _DEFAULT.waiting_count,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a prediction's enclave is ended.")
    ] = _DEFAULT.predict_seconds,
    grace: Annotated[
        float, typer.Option(min=0.0, help="Seconds that requests under way have at the end.")
    ] = _DEFAULT.shutdown_seconds,
    log: Annotated[
        str | None,
        typer.Option(metavar="json|text", help="Form of log lines. Default: text on a terminal."),
    ] = None,
) -> None:
    """Serve sealed models from enclaves, to clients that verify and encrypt."""
    from vessels.listening import bound_socket, parse_address
    from vessels.serve.app import Site
    from vessels.serve.metrics import Metrics
    from vessels.serve.model import ServedModel
    from vessels.serve.server import serve as run

    use_server_log(_style(log))
    if (tls_certificate is None) != (tls_key is None):
        raise UsageError("--tls-certificate and --tls-key go together.")
    address = parse_address(listen)
    files = _named(models)
    limits = Limits(
        connection_count=connections,
        waiting_count=queue,
        predict_seconds=timeout,
        shutdown_seconds=grace,
    )
    source = _key_source(keys, insecure_key or [], files.values())
    launcher = _backend(backend, threads, files, manifest or [])
    metrics = Metrics()
    served = {
        name: ServedModel(name, path, backend=launcher, keys=source, limits=limits, metrics=metrics)
        for name, path in files.items()
    }
    bound = bound_socket(*address)
    site = Site(served, limits, metrics)
    asyncio.run(run(site, bound, certificate=tls_certificate, private_key=tls_key))


def _style(text: str | None) -> Style:
    if text is None:
        return Style.TEXT if sys.stderr.isatty() else Style.JSON
    try:
        return Style(text)
    except ValueError:
        raise UsageError(f"--log is {text!r}; it must be json or text.") from None


def _named(texts: Sequence[str]) -> dict[str, Path]:
    """The sealed models by name. Raises :class:`UsageError`."""
    files: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        # A path may hold `=` itself.
        if not equals or not _NAME.fullmatch(name):
            name, path = Path(text).stem, text
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} is no name for a model in a URL; give it one: NAME={path}, of letters, "
                "digits, '.', '_' and '-'."
            )
        if name in files:
            raise UsageError(f"two models are called {name!r}; give one another name: NAME={path}.")
        files[name] = Path(path)
    return files


def _key_source(url: str | None, insecure: Sequence[Path], models: Iterable[Path]) -> KeySource:
    from vessels.serve.keys import KEY_NOTICE, InsecureKeyFiles, KeyService

    if (url is None) == (not insecure):
        raise UsageError("keys come from --keys URL, or from --insecure-key MODEL.key; give one.")
    if url is not None:
        return KeyService.at(url)
    _log.warning(KEY_NOTICE)
    files = InsecureKeyFiles.load(insecure)
    for model in models:
        # A key that is missing is better known now than when the enclave wants it.
        files.key_of(model)
    return files


def _backend(
    name: str, threads: int | None, models: Mapping[str, Path], manifests: Sequence[str]
) -> Backend:
    from vessels.serve import backends

    if manifests and name != "gramine":
        raise UsageError("--manifest is for --backend gramine.")
    if name == "simulation":
        return backends.Simulation(threads)
    if name == "native":
        return backends.Native(threads)
    if name != "gramine":
        raise UsageError(f"--backend is {name!r}; it must be simulation, gramine or native.")
    if threads is not None:
        raise UsageError("under Gramine the threads are the manifest's: `vessels gramine`.")
    folders = _folders(manifests, models)
    return backends.Gramine({models[n]: folder for n, folder in folders.items()})


def _folders(texts: Sequence[str], models: Mapping[str, Path]) -> dict[str, Path]:
    """The folder of each model's manifest."""
    folders: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals and len(models) == 1:
            [name], path = models, text
        if name not in models or name in folders:
            raise UsageError(f"--manifest {text}: write NAME=DIR, once for each model.")
        folders[name] = Path(path)
    if missing := sorted(set(models) - set(folders)):
        raise UsageError(f"--backend gramine needs a --manifest for {', '.join(missing)}.")
    return folders
