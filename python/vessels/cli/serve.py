"""``vessels serve``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vessels.cli.listening import Certificate, PrivateKey, check_tls, log_style
from vessels.errors import UsageError
from vessels.serve.limits import Limits
from vessels.serve.logs import event, use_server_log

if TYPE_CHECKING:
    from vessels.serve.backends import Backend
    from vessels.serve.config import ModelSettings
    from vessels.serve.keys import KeySource

_DEFAULT = Limits()
_log = logging.getLogger("vessels")


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]MODEL.vessel…", help="Sealed models; the file's name is the model's."
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--models", metavar="DIR", help="All sealed models in a folder.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="serve.toml", help="Models with weights, queues and limits."),
    ] = None,
    epc: Annotated[
        str | None,
        typer.Option(
            metavar="auto|93MiB|none",
            help="Trusted memory for all enclaves. Default: auto under Gramine, else none.",
        ),
    ] = None,
    keys: Annotated[
        str | None, typer.Option(metavar="URL", help="The model owner's key service.")
    ] = None,
    insecure_key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="MODEL.key|DIR",
            help="Key files on this host instead, which can then read the models.",
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to serve; port 0 takes a free one.")
    ] = "127.0.0.1:8080",
    tls_certificate: Certificate = None,
    tls_key: PrivateKey = None,
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
    slots: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Most requests that one run of an enclave answers."),
    ] = None,
    connections: Annotated[
        int, typer.Option(min=1, help="Most connections that are served.")
    ] = _DEFAULT.connection_count,
    queue: Annotated[
        int | None,
        typer.Option(min=1, help="Most requests that may wait for one model. Default: 128."),
    ] = None,
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
    from vessels.listening import bound_socket, parse_address, run_loop
    from vessels.schedule.model import Machine
    from vessels.serve.app import Site
    from vessels.serve.environment import Tools
    from vessels.serve.host import Host
    from vessels.serve.metrics import Metrics
    from vessels.serve.model import ServedModel
    from vessels.serve.server import serve as run

    use_server_log(log_style(log or ("text" if sys.stderr.isatty() else "json")))
    check_tls(tls_certificate, tls_key)
    address = parse_address(listen)
    settings, memory = _settings(
        models or [], folder, config, threads=threads, slots=slots, queue=queue
    )
    if backend == "gramine" and any(m.threads or m.slots for m in settings.values()):
        raise UsageError("under Gramine threads and slots are the manifest's: `vessels gramine`.")
    files = {name: model.path for name, model in settings.items()}
    limits = Limits(
        connection_count=connections,
        waiting_count=queue or _DEFAULT.waiting_count,
        predict_seconds=timeout,
        shutdown_seconds=grace,
    )
    source = _key_source(keys, insecure_key or [], files.values())
    launcher = _backend(backend, files, manifest or [])
    machine = Machine(len(os.sched_getaffinity(0)), _epc_size(epc or memory, backend))
    tools = Tools(launcher, source, limits, Metrics())
    served = [
        ServedModel(model, backend=launcher, limits=limits, machine=machine)
        for model in settings.values()
    ]

    async def main() -> None:
        site = Site(Host(served, machine, tools), limits, tools.metrics)
        event("capacity", epc_size=machine.epc_size or "none", cores=machine.core_count)
        await run(site, bound, certificate=tls_certificate, private_key=tls_key)

    bound = bound_socket(*address)
    run_loop(main())


def _settings(
    texts: Sequence[str],
    folder: Path | None,
    config: Path | None,
    *,
    threads: int | None = None,
    slots: int | None = None,
    queue: int | None = None,
) -> tuple[dict[str, ModelSettings], str | None]:
    """The models by name, as the command line and the file together say, and the file's EPC."""
    from vessels.serve.config import Settings, in_folder, merged, named

    file = Settings() if config is None else Settings.load(config)
    models = merged(file.models, named(texts), [] if folder is None else in_folder(folder))
    limited = {
        name: replace(
            model,
            threads=threads or model.threads,
            slots=slots or model.slots,
            queue=queue or model.queue,
        )
        for name, model in models.items()
    }
    return limited, file.epc


def _epc_size(text: str | None, backend: str) -> int | None:
    from vessels.serve.capacity import AUTO, NONE, epc_size

    return epc_size(text or (AUTO if backend == "gramine" else NONE))


def _key_source(url: str | None, insecure: Sequence[Path], models: Iterable[Path]) -> KeySource:
    from vessels.serve.keys import KEY_NOTICE, InsecureKeyFiles, KeyService

    if (url is None) == (not insecure):
        raise UsageError("keys come from --keys URL, or from --insecure-key MODEL.key; give one.")
    if url is not None:
        return KeyService.at(url)
    _log.warning(KEY_NOTICE)
    files = InsecureKeyFiles.load(_key_files(insecure))
    for model in models:
        # A key that is missing is better known now than when the enclave wants it.
        files.key_of(model)
    return files


def _key_files(paths: Iterable[Path]) -> list[Path]:
    """These key files, and those in these folders. Raises :class:`UsageError`."""
    files: list[Path] = []
    for path in paths:
        found = sorted(path.glob("*.key")) if path.is_dir() else [path]
        if not found:
            raise UsageError(f"there is no *.key in {path}.")
        files += found
    return files


def _backend(name: str, models: Mapping[str, Path], manifests: Sequence[str]) -> Backend:
    from vessels.serve import backends

    if manifests and name != "gramine":
        raise UsageError("--manifest is for --backend gramine.")
    if name == "simulation":
        return backends.Simulation()
    if name == "native":
        return backends.Native()
    if name != "gramine":
        raise UsageError(f"--backend is {name!r}; it must be simulation, gramine or native.")
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
