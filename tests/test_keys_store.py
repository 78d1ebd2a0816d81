"""The key store: encrypted at rest, whole or refused, and its command line."""

from __future__ import annotations

import concurrent.futures
import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyrage
import pytest
from typer.testing import CliRunner, Result

from tests.conftest import Sealed
from vessels.attestation import model_digest
from vessels.cli import app
from vessels.errors import KeyFileError, UsageError, VesselsError
from vessels.keys.envelope import Identity, Passphrase, needs_passphrase
from vessels.keys.source import FileKeys, StoredKeys, parse_key_files
from vessels.keys.store import KeyStore, ModelKey
from vessels.seal import create_key, load_key


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    path = tmp_path / "owner.identity"
    Identity.create(path)
    return path


@pytest.fixture
def store(tmp_path: Path, identity: Path) -> KeyStore:
    return KeyStore.create(tmp_path / "keys.age", Identity.load(identity))


def write(store: KeyStore, content: bytes) -> None:
    store.path.write_bytes(store.envelope.closed(content))


def listed(**changes: Any) -> dict[str, Any]:
    return {
        "name": "m", "digest": "ab" * 32, "key": "cd" * 32, "added": "2026-01-01T00:00:00Z",
        "revoked": None,
    } | changes  # fmt: skip


def document(*keys: Any, **changes: Any) -> bytes:
    return json.dumps({"version": 1, "keys": list(keys)} | changes).encode()


def test_what_is_kept_comes_back(store: KeyStore, sealed: Sealed) -> None:
    added = store.add(sealed.vessel, sealed.key)
    assert added.name == "m" and added.digest == model_digest(sealed.vessel)
    assert added.key == load_key(sealed.key)
    assert store.read() == [added]
    assert added.key.hex() not in repr(added)


def test_nothing_of_it_is_readable_at_rest(store: KeyStore, sealed: Sealed) -> None:
    added = store.add(sealed.vessel, sealed.key, name="a-marker-name")
    content = store.path.read_bytes()
    for secret in (added.key, added.key.hex().encode(), b"a-marker-name", added.digest.hex()[:16]):
        assert (secret if isinstance(secret, bytes) else secret.encode()) not in content
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert [p.name for p in store.path.parent.iterdir() if p.suffix == ".key"] == []


def test_any_age_program_opens_it(store: KeyStore, sealed: Sealed, identity: Path) -> None:
    store.add(sealed.vessel, sealed.key)
    secret = next(t for t in identity.read_text().splitlines() if not t.startswith("#"))
    plain = pyrage.decrypt(store.path.read_bytes(), [pyrage.x25519.Identity.from_str(secret)])
    assert json.loads(plain)["keys"][0]["key"] == load_key(sealed.key).hex()


def test_a_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "keys.age"
    KeyStore.create(path, Passphrase("correct horse"))
    assert needs_passphrase(path.read_bytes())
    assert KeyStore(path, Passphrase("correct horse")).read() == []
    with pytest.raises(KeyFileError, match="the passphrase is wrong, or the file is altered"):
        KeyStore(path, Passphrase("wrong horse")).read()
    with pytest.raises(KeyFileError, match="opens with a passphrase"):
        KeyStore(path, Identity(pyrage.x25519.Identity.generate())).read()


@pytest.mark.parametrize("busy_count", [1, 1000])
def test_a_machine_that_is_busy_may_take_the_work_for_too_much(
    monkeypatch: pytest.MonkeyPatch, busy_count: int
) -> None:
    """Age measures what it can do, and refuses what would take it long."""
    tries: list[bytes] = []

    def decrypt(sealed: bytes, passphrase: str) -> bytes:
        tries.append(sealed)
        if len(tries) <= busy_count:
            raise pyrage.DecryptError("Excessive work parameter for passphrase.")
        return b"plain"

    monkeypatch.setattr(pyrage.passphrase, "decrypt", decrypt)
    sealed = b"age-encryption.org/v1\n-> scrypt "
    if busy_count == 1:
        assert Passphrase("x").opened(sealed) == b"plain"
    else:
        with pytest.raises(ValueError, match="too much work"):
            Passphrase("x").opened(sealed)
    assert 1 < len(tries) < 100


def test_another_identity_does_not_open_it(store: KeyStore) -> None:
    other = Identity(pyrage.x25519.Identity.generate())
    with pytest.raises(KeyFileError, match="the identity is another, or the file is altered"):
        KeyStore(store.path, other).read()
    with pytest.raises(KeyFileError, match="opens with an identity file"):
        KeyStore(store.path, Passphrase("x")).read()


def test_every_byte_is_authenticated(store: KeyStore, sealed: Sealed) -> None:
    store.add(sealed.vessel, sealed.key)
    good = store.path.read_bytes()
    for index in range(len(good)):
        bad = bytearray(good)
        bad[index] ^= 1 << index % 8
        store.path.write_bytes(bad)
        with pytest.raises(KeyFileError, match="cannot open"):
            store.read()
    for cut in (b"", good[:-1], good + b"\0"):
        store.path.write_bytes(cut)
        with pytest.raises(KeyFileError, match="cannot open"):
            store.read()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"version": 1}',
        document(more=1),
        document(version=2),
        document(version=True),
        document(listed(key="cd" * 31)),
        document(listed(digest="ab" * 33)),
        document(listed(digest=None)),
        document(listed(name="")),
        document(listed(name="a\nb")),
        document(listed(added="2026-01-01T00:00:00")),
        document(listed(added="yesterday")),
        document(listed(more=1)),
        document("m"),
        document(listed(), listed(name="n")),
    ],
)
def test_malformed_stores(store: KeyStore, content: bytes) -> None:
    write(store, content)
    with pytest.raises(KeyFileError) as refused:
        store.read()
    # Not even an error shows a key.
    assert "cd" * 8 not in str(refused.value) and refused.value.__cause__ is None


def test_the_key_must_be_the_models(store: KeyStore, sealed: Sealed, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.key"
    create_key(wrong)
    with pytest.raises(KeyFileError, match=r"^S5 "):
        store.add(sealed.vessel, wrong)
    assert store.read() == []


def test_a_build_is_kept_once(store: KeyStore, sealed: Sealed) -> None:
    store.add(sealed.vessel, sealed.key)
    with pytest.raises(KeyFileError, match="in the store already, as 'm'"):
        store.add(sealed.vessel, sealed.key, "n")
    store.revoke("m")
    with pytest.raises(KeyFileError, match="as 'm', and revoked"):
        store.add(sealed.vessel, sealed.key)


def test_revoke_restore_remove(store: KeyStore) -> None:
    write(store, document(listed(), listed(digest="12" * 32), listed(name="n", digest="34" * 32)))
    assert [k.digest.hex() for k in store.revoke("m")] == ["ab" * 32, "12" * 32]
    assert [k.revoked is not None for k in store.read()] == [True, True, False]
    first = store.read()[0].revoked
    assert store.revoke("m") == [] and store.read()[0].revoked == first
    assert len(store.restore("12" * 32)) == 1
    assert [k.revoked is not None for k in store.read()] == [True, False, False]
    assert len(store.remove("m")) == 2
    assert [k.name for k in store.read()] == ["n"]
    for change in (store.revoke, store.restore, store.remove):
        with pytest.raises(UsageError, match="no key in the store has the name or digest 'm'"):
            change("m")


def test_changes_at_once_are_all_kept(store: KeyStore) -> None:
    names = [f"m{i}" for i in range(8)]
    write(store, document(*(listed(name=n, digest=f"{i:064x}") for i, n in enumerate(names))))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(store.revoke, names))
    assert all(k.revoked for k in store.read())


def test_no_store_replaces_another(store: KeyStore, identity: Path) -> None:
    with pytest.raises(KeyFileError, match="never overwritten"):
        KeyStore.create(store.path, store.envelope)
    with pytest.raises(KeyFileError, match="never overwritten"):
        Identity.create(identity)


def test_a_store_under_a_running_service(store: KeyStore, sealed: Sealed) -> None:
    digest = model_digest(sealed.vessel)
    keys = StoredKeys(store)
    assert keys.find(digest) is None
    store.add(sealed.vessel, sealed.key)
    found = keys.find(digest)
    assert found is not None and found.revoked is None
    store.revoke("m")
    found = keys.find(digest)
    assert found is not None and found.revoked is not None
    content = store.path.read_bytes()
    for broken in (b"nonsense", b""):
        store.path.write_bytes(broken)
        for _ in range(2):
            with pytest.raises(KeyFileError):
                keys.find(digest)
    store.path.unlink()
    with pytest.raises(KeyFileError):
        keys.all()
    store.path.write_bytes(content)
    assert keys.all() == store.read()


def test_a_broken_store_is_read_once(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = StoredKeys(store)
    store.path.write_bytes(b"nonsense")
    reads = []
    read = KeyStore.read_with_stamp

    def counted(self: KeyStore) -> Any:
        reads.append(self.path)
        return read(self)

    monkeypatch.setattr(KeyStore, "read_with_stamp", counted)
    for _ in range(3):
        with pytest.raises(KeyFileError):
            keys.find(bytes(32))
    assert len(reads) == 1


@pytest.mark.parametrize(
    "content", ["", "# only a comment\n", "nonsense\n", "AGE-SECRET-KEY-1XYZ\n", "a\nb\n"]
)
def test_what_is_no_identity(tmp_path: Path, content: str) -> None:
    path = tmp_path / "i"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="is no identity file"):
        Identity.load(path)


def test_secrets_that_others_may_read(identity: Path) -> None:
    assert stat.S_IMODE(identity.stat().st_mode) == 0o600
    identity.chmod(0o644)
    with pytest.warns(UserWarning, match="may be read by others"):
        Identity.load(identity)


def test_passphrase_files(tmp_path: Path) -> None:
    path = tmp_path / "p"
    for content, text in (("a b\n", "a b"), ("a\r\nrest", "a"), ("a", "a")):
        path.write_text(content, newline="")
        path.chmod(0o600)
        assert Passphrase.load(path).text == text
    for bad in (b"", b"\nx", b"\xff\n", bytes(5000)):
        path.write_bytes(bad)
        with pytest.raises(KeyFileError):
            Passphrase.load(path)


def test_key_files_by_the_policys_names(sealed: Sealed, tmp_path: Path) -> None:
    from tests.attestation import policy

    files = parse_key_files([f"m={sealed.key}"])
    digest = model_digest(sealed.vessel)
    rules = policy(models={"m": [digest.hex(), "ab" * 32]}, sgx={"mr_enclave": ["00" * 32]})
    keys = FileKeys(files, rules)
    for known in (digest, bytes.fromhex("ab" * 32)):
        found = keys.find(known)
        assert found is not None and found.key == load_key(sealed.key)
    assert keys.find(bytes(32)) is None
    assert parse_key_files(["a/resnet.key"]) == {"resnet": Path("a/resnet.key")}
    with pytest.raises(UsageError, match="accepts no model 'x', but 'm'"):
        FileKeys({"x": sealed.key}, rules)
    for bad in (["m=a", "m=b"], ["=a"], ["m="]):
        with pytest.raises(UsageError):
            parse_key_files(bad)


def run(*arguments: object, answer: str | None = None) -> Result:
    result = CliRunner().invoke(app, ["keys", *map(str, arguments)], input=answer)
    if isinstance(result.exception, VesselsError):
        raise result.exception
    return result


def test_the_command_line(sealed: Sealed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "300")
    opens = ("--identity", tmp_path / "owner.identity")
    digest = model_digest(sealed.vessel).hex()
    with pytest.raises(KeyFileError, match="`vessels keys init` makes one"):
        run("list", *opens)
    made = run("init", *opens)
    assert "owner.identity" in made.stdout and "state/vessels/keys.age" in made.stdout.replace(
        "\n", ""
    )
    assert f"added m ({digest})" in run("add", sealed.vessel, *opens).stdout
    assert digest in run("list", *opens).stdout
    assert "revoked m" in run("revoke", "m", *opens).stdout
    assert "was revoked before" in run("revoke", "m", *opens).stderr
    [key] = json.loads(run("list", "--json", *opens).stdout)["keys"]
    assert key["digest"] == digest and key["revoked"] and "key" not in key
    assert "restored m" in run("restore", digest, *opens).stdout
    copy = tmp_path / "copy.key"
    run("export", "m", "-o", copy, *opens)
    assert copy.read_text() == sealed.key.read_text()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert run("remove", "m", *opens, answer="n\n").exit_code == 1
    assert len(json.loads(run("list", "--json", *opens).stdout)["keys"]) == 1
    run("remove", "m", "--yes", *opens)
    assert json.loads(run("list", "--json", *opens).stdout)["keys"] == []
    with pytest.raises(KeyFileError, match="never overwritten"):
        run("init", *opens)


def test_the_command_line_asks_for_a_passphrase(tmp_path: Path) -> None:
    store = tmp_path / "keys.age"
    made = run("init", "--store", store, answer="secret\nsecret\n")
    assert made.exit_code == 0 and "secret" not in made.stdout + made.stderr
    assert run("list", "--store", store, answer="secret\n").exit_code == 0
    with pytest.raises(KeyFileError, match="the passphrase is wrong"):
        run("list", "--store", store, answer="other\n")


def test_new_keys(tmp_path: Path) -> None:
    path = tmp_path / "m.key"
    assert "back it up" in run("new", path).stdout
    assert len(load_key(path)) == 32
    with pytest.raises(KeyFileError, match="never overwritten"):
        run("new", path)


def test_misuse(tmp_path: Path, identity: Path) -> None:
    store = tmp_path / "keys.age"
    KeyStore.create(store, Identity.load(identity))
    with pytest.raises(UsageError, match="not both"):
        run("list", "--store", store, "--identity", identity, "--passphrase-file", identity)


def test_a_name_of_two_keys_is_not_exported(store: KeyStore, identity: Path) -> None:
    write(store, document(listed(), listed(digest="12" * 32, key="34" * 32)))
    with pytest.raises(UsageError, match="names 2 different keys"):
        run("export", "m", "-o", store.path.with_name("k"), "--store", store.path,
            "--identity", identity)  # fmt: skip


def test_times_are_written_as_they_are_read(store: KeyStore) -> None:
    write(store, document(listed(revoked="2026-02-03T05:06:07+01:00")))
    [key] = store.read()
    assert key == ModelKey(
        "m", bytes.fromhex("ab" * 32), bytes.fromhex("cd" * 32),
        datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 3, 4, 6, 7, tzinfo=UTC),
    )  # fmt: skip
    assert key.as_json()["revoked"] == "2026-02-03T04:06:07Z"
