"""``vessels keys``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from vessels.cli.collateral import CollateralPath, Pccs, collateral_source
from vessels.cli.common import AsJson, err, out, print_json
from vessels.cli.listening import Certificate, PrivateKey, check_tls, log_style
from vessels.errors import KeyFileError, UsageError
from vessels.files import check_replaceable, is_there

if TYPE_CHECKING:
    from vessels.attestation import Policy
    from vessels.keys.envelope import Envelope
    from vessels.keys.source import KeySource
    from vessels.keys.store import KeyStore, ModelKey

app = typer.Typer(
    help="Keep model keys encrypted, and release them to attested enclaves.", no_args_is_help=True
)

StorePath = Annotated[
    Path | None,
    typer.Option("--store", metavar="KEYS.age", help="The key store. Default: the user's own."),
]
IdentityPath = Annotated[
    Path | None,
    typer.Option("--identity", metavar="FILE", help="Opens the store: an age identity file."),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="Opens the store: its first line. Else a passphrase is asked for.",
    ),
]
Which = Annotated[
    list[str], typer.Argument(metavar="NAME|DIGEST...", help="A name, or a build's digest.")
]


@app.command()
def new(
    key: Annotated[Path, typer.Argument(metavar="MODEL.key", help="The key file to be made.")],
) -> None:
    """Make a model key, for `vessels build --key`."""
    from vessels.seal import create_key

    create_key(key)
    _say(f"made {key}; back it up: what is sealed with it opens with nothing else")


@app.command()
def init(
    store: StorePath = None, identity: IdentityPath = None, passphrase_file: PassphraseFile = None
) -> None:
    """Make an empty key store; with --identity also that file, unless it is there."""
    from vessels.keys.envelope import Identity
    from vessels.keys.store import KeyStore, default_path

    path = store or default_path()
    check_replaceable(path)
    if path.exists():
        raise KeyFileError(f"{path} exists; a key store is never overwritten.")
    if identity is not None and passphrase_file is None and not is_there(identity):
        Identity.create(identity)
        _say(f"made {identity}; back it up, and keep it apart from the store")
    KeyStore.create(path, _envelope(path, identity, passphrase_file))
    _say(f"made {path}")


@app.command()
def add(
    model: Annotated[Path, typer.Argument(metavar="MODEL.vessel", help="The sealed model.")],
    key: Annotated[
        Path | None,
        typer.Option(metavar="MODEL.key", help="Its key. Default: the model's name with .key."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What it is called. Default: the file's name.")
    ] = None,
    store: StorePath = None,
    identity: IdentityPath = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Keep the key of a sealed model, which is read whole to see that the key opens it."""
    opened = _store(store, identity, passphrase_file)
    added = opened.add(model, key or model.with_suffix(".key"), name)
    _say(f"added {added.name} ({added.digest.hex()}) to {opened.path}")


@app.command("list")
def list_(
    store: StorePath = None,
    identity: IdentityPath = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """List the keys in the store; the keys themselves are not shown."""
    opened = _store(store, identity, passphrase_file)
    keys = opened.read()
    if as_json:
        print_json({"store": str(opened.path), "keys": [k.as_json() for k in keys]})
        return
    table = Table(title=Text(str(opened.path)), title_justify="left")
    for column in ("name", "digest of the build", "added", "revoked"):
        # A digest is of use only as a whole.
        table.add_column(column, overflow="fold")
    for key in keys:
        shown = key.as_json()
        table.add_row(*(Text(shown[f] or "") for f in ("name", "digest", "added", "revoked")))
    out.print(table)


@app.command()
def revoke(
    which: Which,
    store: StorePath = None,
    identity: IdentityPath = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Release a model's key no more; a running service sees it at once.

    An enclave that has the key already keeps it until it ends.
    """
    opened = _store(store, identity, passphrase_file)
    for name in which:
        _report("revoked", opened.revoke(name), f"{name} was revoked before")


@app.command()
def restore(
    which: Which,
    store: StorePath = None,
    identity: IdentityPath = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Take a revocation back."""
    opened = _store(store, identity, passphrase_file)
    for name in which:
        _report("restored", opened.restore(name), f"{name} was not revoked")


@app.command()
def remove(
    which: Which,
    store: StorePath = None,
    identity: IdentityPath = None,
    passphrase_file: PassphraseFile = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Erase a model's key from the store. Without a copy the model never opens again."""
    from vessels.keys.store import chosen

    opened = _store(store, identity, passphrase_file)
    for name in which:
        for key in [] if yes else chosen(opened.read(), name):
            typer.confirm(f"Erase the key of {key.name} ({key.digest.hex()})?", abort=True)
        _report("removed", opened.remove(name), "")


@app.command()
def export(
    which: Annotated[str, typer.Argument(metavar="NAME|DIGEST", help="Of one key.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="MODEL.key", help="The key file to be made.")
    ],
    store: StorePath = None,
    identity: IdentityPath = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Write a key of the store to a key file, in plain."""
    from vessels.keys.store import chosen
    from vessels.seal import create_key

    found = {k.key for k in chosen(_store(store, identity, passphrase_file).read(), which)}
    if len(found) != 1:
        raise UsageError(f"{which!r} names {len(found)} different keys; give a digest.")
    create_key(output, found.pop())
    _say(f"wrote {output}, which is not encrypted")


@app.command()
def serve(
    policy: Annotated[
        Path,
        typer.Option(metavar="POLICY.toml", help="Which enclaves get which models' keys."),
    ],
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]MODEL.key",
            help="Instead of a store: the key of the policy's model NAME; by default the file's.",
        ),
    ] = None,
    store: StorePath = None,
    identity: IdentityPath = None,
    passphrase_file: PassphraseFile = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where hosts ask.")
    ] = "127.0.0.1:8090",
    tls_certificate: Certificate = None,
    tls_key: PrivateKey = None,
    pccs: Pccs = None,
    collateral: CollateralPath = None,
    log: Annotated[
        str, typer.Option(metavar="text|json", help="How log lines on standard error look.")
    ] = "text",
) -> None:
    """Release keys to enclaves whose evidence a policy accepts. Runs until it is interrupted."""
    import resource

    from vessels.attestation import Policy, Verifier
    from vessels.keys.app import key_app
    from vessels.keys.release import KeyService
    from vessels.listening import (
        Limits,
        bound_socket,
        parse_address,
        run_loop,
        serve_until_signal,
        server,
        url_of,
    )
    from vessels.serve.logs import event, use_server_log

    style = log_style(log)
    check_tls(tls_certificate, tls_key)
    source = collateral_source(pccs, collateral)
    # A core dump would hold the keys.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    rules = Policy.load(policy)
    keys = _source(key or [], rules, store, identity, passphrase_file)
    bound = bound_socket(*parse_address(listen))
    use_server_log(style)
    made = server(
        key_app(KeyService(Verifier(rules, source), keys)), Limits(),
        certificate=tls_certificate, private_key=tls_key,
    )  # fmt: skip
    for found in keys.all():
        event(
            "key", model=found.name, digest=found.digest.hex(),
            revoked=found.revoked, in_policy=rules.model_of(found.digest) is not None,
        )  # fmt: skip
    event("serving", url=url_of(bound, tls=tls_key is not None), policy=str(policy))
    run_loop(serve_until_signal(made, bound))
    event("stopped")


def _source(
    files: list[str],
    policy: Policy,
    store: Path | None,
    identity: Path | None,
    passphrase_file: Path | None,
) -> KeySource:
    from vessels.keys.source import FileKeys, StoredKeys, parse_key_files

    if not files:
        return StoredKeys(_store(store, identity, passphrase_file))
    if store is not None or identity is not None or passphrase_file is not None:
        raise UsageError("keys are from --key or from a store, not both.")
    return FileKeys(parse_key_files(files), policy)


def _store(store: Path | None, identity: Path | None, passphrase_file: Path | None) -> KeyStore:
    from vessels.keys.store import KeyStore, default_path

    path = store or default_path()
    if not path.exists():
        raise KeyFileError(f"there is no key store {path}; `vessels keys init` makes one.")
    return KeyStore(path, _envelope(path, identity, passphrase_file))


def _envelope(path: Path, identity: Path | None, passphrase_file: Path | None) -> Envelope:
    from vessels.keys.envelope import Identity, Passphrase

    if identity is not None and passphrase_file is not None:
        raise UsageError("a store opens with --identity or with --passphrase-file, not both.")
    if identity is not None:
        return Identity.load(identity)
    if passphrase_file is not None:
        return Passphrase.load(passphrase_file)
    text: str = typer.prompt(
        f"Passphrase of {path}", hide_input=True, confirmation_prompt=not is_there(path), err=True
    )
    return Passphrase(text)


def _report(what: str, keys: list[ModelKey], none: str) -> None:
    for key in keys:
        _say(f"{what} {key.name} ({key.digest.hex()})")
    if not keys:
        err.print(none, markup=False, highlight=False, soft_wrap=True)


def _say(text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)
