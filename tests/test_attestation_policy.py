"""Policies: read as a whole or refused, with the key and the file."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.attestation import CLAIMS, policy, policy_text
from vessels.attestation import INTEL, Policy, Tee
from vessels.attestation.policy import STATUSES
from vessels.attestation.simulation import SimulationRoot
from vessels.attestation.template import new_policy
from vessels.errors import PolicyError, UsageError

TODAY = datetime.now(UTC)
MR = "cd" * 32
MR_48 = "cd" * 48
SGX = {"mr_enclave": [MR]}
TDX = {"mr_td": [MR_48], "rtmr1": [MR_48], "rtmr2": [MR_48]}


def test_defaults_are_strict() -> None:
    found = policy(sgx=SGX)
    assert found.tcb.statuses == {"UpToDate"} and not found.tcb.advisories
    assert found.root == INTEL and found.tdx is None
    assert found.sgx is not None and not found.sgx.mr_enclave.admits(bytes(32))


def test_all_keys() -> None:
    found = policy(
        models={"a": [MR], "b c.d": ["00" * 32, "11" * 32]},
        sgx=SGX | {"mr_signer": [MR, "ef" * 32], "isv_prod_id": 7, "minimum_isv_svn": 3},
        tdx=TDX | {"rtmr0": [MR_48], "rtmr3": [MR_48]},
        tcb={"statuses": list(STATUSES), "advisories": ["INTEL-SA-1"], "minimum_evaluation": 17},
    )
    assert found.model_of(bytes(32)) == "b c.d" and found.model_of(b"\2" * 32) is None
    assert found.sgx is not None and found.tdx is not None
    assert (found.sgx.isv_prod_id, found.sgx.minimum_isv_svn) == (7, 3)
    assert found.sgx.mr_signer.admits(bytes.fromhex("ef" * 32))
    assert all(r.admits(bytes.fromhex(MR_48)) for r in found.tdx.rtmr)
    assert not any(r.admits(bytes(48)) for r in found.tdx.rtmr)
    assert found.tcb.minimum_evaluation == 17


def test_what_is_left_out_is_any() -> None:
    found = policy(tdx=TDX)
    assert found.tdx is not None
    assert [r.admits(bytes(48)) for r in found.tdx.rtmr] == [True, False, False, True]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"sgx": SGX | {"mrenclave": [MR]}}, "sgx.mrenclave: this key is not known"),
        ({"sgx": SGX | {"insecure_allow_debug": [MR]}}, "sgx.insecure_allow_debug: this key is"),
        ({"tdx": TDX | {"rtmr4": [MR_48]}}, "tdx.rtmr4: this key is not known"),
        ({"sgx": SGX, "tcb": {"status": ["UpToDate"]}}, "tcb.status: this key is not known"),
        ({"sgx": {"mr_enclave": []}}, "sgx.mr_enclave: it is empty"),
        ({"sgx": {"mr_enclave": MR}}, "sgx.mr_enclave: it must be a list of texts"),
        ({"sgx": {"mr_enclave": [1]}}, "sgx.mr_enclave: it must be a list of texts"),
        ({"sgx": {"mr_enclave": [MR[2:]]}}, "sgx.mr_enclave: each value must be 64 hexadecimal"),
        ({"sgx": {"mr_enclave": ["x" * 64]}}, "sgx.mr_enclave: each value must be 64 hexadec"),
        ({"sgx": {"mr_enclave": [MR + " "]}}, "sgx.mr_enclave: each value must be 64 hexadec"),
        ({"sgx": {"isv_prod_id": 1}}, "sgx.mr_enclave: without it any software passes"),
        ({"sgx": {"mr_signer": [MR]}}, "sgx.mr_enclave: without it any software passes"),
        (
            {"sgx": SGX | {"isv_prod_id": 65536}},
            "sgx.isv_prod_id: it must be a whole number from 0 t",
        ),
        (
            {"sgx": SGX | {"isv_prod_id": -1}},
            "sgx.isv_prod_id: it must be a whole number from 0 to",
        ),
        ({"sgx": SGX | {"minimum_isv_svn": "1"}}, "sgx.minimum_isv_svn: it must be a whole"),
        ({"tdx": {"mr_td": [MR_48]}}, "tdx.rtmr1: without it any software passes"),
        ({"tdx": TDX | {"rtmr2": [MR]}}, "tdx.rtmr2: each value must be 96 hexadecimal"),
        ({"sgx": SGX, "tcb": {"statuses": []}}, "tcb.statuses: it is empty"),
        ({"sgx": SGX, "tcb": {"statuses": ["Revoked"]}}, "tcb.statuses: 'Revoked' is none of UpT"),
        ({"sgx": SGX, "tcb": {"statuses": ["uptodate"]}}, "tcb.statuses: 'uptodate' is none of"),
        ({"sgx": SGX, "models": {"a": []}}, "models.a: it is empty"),
        ({"sgx": SGX, "models": {"a": ["00"]}}, "models.a: each value must be 64 hexadecimal"),
        ({"sgx": SGX, "models": {"a": [MR], "b": [MR]}}, "models: one digest stands under two"),
        ({}, "it accepts nothing; add a table [sgx] or [tdx]"),
    ],
)
def test_refusals_name_the_key_and_the_file(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError) as refused:
        policy(**parts)
    assert str(refused.value).startswith(f"p.toml: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version = ", "it is no TOML: "),
        ("", "version: it must be 1"),
        ("version = 2", "version: it must be 1"),
        ("version = true", "version: it must be a whole number"),
        ("version = 1\n[sgx]\nmr_enclave=['00']", "models: name at least one"),
        ("version = 1\nmodels = 3", "models: it must be a table"),
        ("version = 1\ninsecure_simulation_root = 'x'", "insecure_simulation_root: it must be one"),
        ("version = 1\ninsecure_simulation_root = ''", "insecure_simulation_root: it must be a t"),
    ],
)
def test_refusals_of_texts(text: str, message: str) -> None:
    with pytest.raises(PolicyError) as refused:
        Policy.parse(text, "p.toml")
    assert str(refused.value).startswith(f"p.toml: {message}")


def test_unknown_keys_at_the_top_are_refused() -> None:
    text = policy_text(sgx=SGX)
    for more in ("simulation_root", "debug", "insecure_allow_debug"):
        with pytest.raises(PolicyError, match=rf"^p.toml: {more}: this key is not known"):
            Policy.parse(f"{more} = true\n{text}", "p.toml")


def test_a_simulation_is_trusted_by_the_insecure_key_alone() -> None:
    root = SimulationRoot.create(TODAY)
    found = policy(sgx=SGX, root=root)
    assert found.root == root.trusted and found.root.simulated
    assert not policy(sgx=SGX).root.simulated
    two = policy_text(sgx=SGX, root=root).replace(root.trusted.pem, root.trusted.pem + INTEL.pem)
    with pytest.raises(PolicyError, match="must be one certificate"):
        Policy.parse(two, "p.toml")


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    with pytest.raises(PolicyError, match=r"^cannot read policy .*p\.toml: No such file"):
        Policy.load(path)
    path.write_bytes(b"\xff")
    with pytest.raises(PolicyError, match="not UTF-8"):
        Policy.load(path)
    path.write_text(policy_text(sgx=SGX))
    assert Policy.load(path) == Policy.parse(path.read_text(), str(path))
    assert issubclass(PolicyError, UsageError)


@pytest.mark.parametrize("name", ["resnet50", "a b", 'quo"te', "ö.1", "x = 1"])
def test_a_new_policy_is_read_again(name: str) -> None:
    text = new_policy({name: [CLAIMS.model_digest]}, measurements=[bytes.fromhex(MR)])
    found = Policy.parse(text, "new.toml")
    assert found.model_of(CLAIMS.model_digest) == name
    assert found.sgx is not None and found.sgx.mr_enclave.describe() == MR
    assert found.tcb.statuses == {"UpToDate"} and not found.root.simulated


def test_a_new_policy_with_gaps_is_refused_until_they_are_filled() -> None:
    with pytest.raises(PolicyError, match=r"new.toml: sgx.mr_enclave: it is empty"):
        Policy.parse(new_policy({"m": [CLAIMS.model_digest]}), "new.toml")
    text = new_policy({"m": [CLAIMS.model_digest]}, tee=Tee.TDX, measurements=[bytes(48)])
    with pytest.raises(PolicyError, match=r"new.toml: tdx.rtmr1: it is empty"):
        Policy.parse(text, "new.toml")
    filled = text.replace("[]", f'["{MR_48}"]', 2)
    assert Policy.parse(filled, "new.toml").tdx is not None


def test_a_new_policy_of_a_simulation() -> None:
    root = SimulationRoot.create(TODAY).trusted
    text = new_policy(
        {"m": [CLAIMS.model_digest]}, measurements=[bytes(32)], insecure_simulation_root=root
    )
    assert "INSECURE" in text
    assert Policy.parse(text, "new.toml").root == root
