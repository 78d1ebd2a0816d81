"""``vessels kubernetes``: manifests against the API's schemas, and what they ask of a node.

There is no cluster here: nothing of this has been applied to one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2
import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner

from tests.conftest import Sealed
from tests.test_load import serving
from vessels.attestation import model_digest
from vessels.cli import app
from vessels.errors import UsageError
from vessels.gramine import epc_size, plan_enclave
from vessels.kubernetes import Cluster, Deployed, as_yaml, deployed, manifests, quantity
from vessels.ladder import MIB, PAGE_SIZE

KEYS = "https://owner.example:8443"
VERSIONS = ("1.27", "1.31", kubernetes_validate.latest_version())
KINDS = ["Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"]

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def model(sealed: Sealed) -> Deployed:
    return deployed(sealed.vessel, name="small_net.V2")


def written(models: list[Deployed], cluster: Cluster) -> list[Manifest]:
    return list(yaml.safe_load_all(as_yaml(manifests(models, cluster))))


def of(kind: str, found: list[Manifest]) -> Manifest:
    [one] = [m for m in found if m["kind"] == kind]
    return one


def bytes_of(text: str) -> int:
    match = re.fullmatch(r"(\d+)(Ki|Mi|Gi)?", text)
    assert match, text
    return int(match[1]) << {None: 0, "Ki": 10, "Mi": 20, "Gi": 30}[match[2]]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "cluster",
    [
        Cluster(KEYS),
        Cluster("http://keys.owner.svc", image="r.example/v@sha256:00", replicas=3, claim="models"),
    ],
)
def test_every_manifest_is_one_that_the_api_takes(
    model: Deployed, cluster: Cluster, version: str
) -> None:
    found = written([model], cluster)
    assert [m["kind"] for m in found] == KINDS
    for manifest in found:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_refuse_what_is_none(model: Deployed) -> None:
    deployment = of("Deployment", written([model], Cluster(KEYS)))
    deployment["spec"]["template"]["spec"]["contaniers"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


def container(found: list[Manifest]) -> Manifest:
    [one] = of("Deployment", found)["spec"]["template"]["spec"]["containers"]
    assert isinstance(one, dict)
    return one


def test_a_pod_asks_for_the_trusted_memory_that_its_enclave_takes(
    model: Deployed, sealed: Sealed
) -> None:
    resources = container(written([model], Cluster(KEYS)))["resources"]
    enclave = plan_enclave(sealed.vessel).enclave_size
    for asked in (resources["limits"], resources["requests"]):
        assert asked["sgx.intel.com/enclave"] == asked["sgx.intel.com/provision"] == "1"
        assert bytes_of(asked["sgx.intel.com/epc"]) == epc_size(enclave)
    assert resources["requests"]["cpu"] == str(plan_enclave(sealed.vessel).thread_count)
    least = bytes_of(resources["requests"]["memory"])
    assert 2 * sealed.vessel.stat().st_size < least < bytes_of(resources["limits"]["memory"])


def test_fewer_threads_ask_for_less(sealed: Sealed) -> None:
    one, all_ = deployed(sealed.vessel, threads=1), deployed(sealed.vessel)
    assert one.plan.needed_size < all_.plan.needed_size
    assert container(written([one], Cluster(KEYS)))["resources"]["requests"]["cpu"] == "1"


def test_more_slots_ask_for_more(sealed: Sealed) -> None:
    one, many = deployed(sealed.vessel, rung=0), deployed(sealed.vessel, rung=0, slots=64)
    assert one.plan.needed_size < many.plan.needed_size
    assert many.plan.enclave_size == plan_enclave(sealed.vessel, rung=0, slots=64).enclave_size


@given(st.integers(0, 20))
def test_the_kernels_own_pages_are_counted(power: int) -> None:
    size = MIB << power
    pages, extra = size // PAGE_SIZE, (epc_size(size) - size) // PAGE_SIZE
    # The control structure, and a version for each page and for the control structure.
    assert (extra - 1 - 1) * 512 < pages + 1 <= (extra - 1) * 512


@given(st.integers(1, 1 << 44))
def test_a_quantity_is_exact(size: int) -> None:
    assert bytes_of(quantity(size)) == size


def test_everything_is_found_by_its_labels(model: Deployed) -> None:
    found = written([model], Cluster(KEYS))
    template = of("Deployment", found)["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    for selector in (
        of("Deployment", found)["spec"]["selector"]["matchLabels"],
        of("Service", found)["spec"]["selector"],
        of("PodDisruptionBudget", found)["spec"]["selector"]["matchLabels"],
        of("NetworkPolicy", found)["spec"]["podSelector"]["matchLabels"],
        template["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert selector and selector.items() <= labels
        assert "app.kubernetes.io/version" not in selector
    assert {m["metadata"]["name"] for m in found} == {"vessels-small-net-v2"}
    annotations = template["metadata"]["annotations"]
    assert annotations["vessels/model-digest"] == model.digest.hex()
    mounted = {m["name"] for m in container(found)["volumeMounts"]}
    assert mounted == {v["name"] for v in template["spec"]["volumes"]}


def test_ports_and_probes_are_those_of_the_server(
    model: Deployed, sealed: Sealed, tmp_path: Path, home: None
) -> None:
    found = written([model], Cluster(KEYS))
    pod = container(found)
    [port] = pod["ports"]
    probes = [pod[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
    assert {p["port"] for p in probes} == {port["name"]}
    with serving(sealed, tmp_path) as server:
        for probe in probes:
            assert httpx2.get(f"{server.url}{probe['path']}", timeout=60).status_code == 200
    assert f"--listen=0.0.0.0:{port['containerPort']}" in pod["args"]
    assert of("Service", found)["spec"]["ports"][0]["targetPort"] == port["name"]
    policy = of("NetworkPolicy", found)["spec"]
    assert policy["ingress"] == [{"ports": [{"protocol": "TCP", "port": port["containerPort"]}]}]
    assert {"protocol": "TCP", "port": 8443} in policy["egress"][1]["ports"]


def test_the_command_is_one_that_vessels_takes(model: Deployed) -> None:
    arguments = container(written([model], Cluster(KEYS)))["args"]
    command = get_command(app)
    with command.make_context("vessels", list(arguments)) as context:
        name, serve, rest = command.resolve_command(context, arguments)  # type: ignore[attr-defined]
        assert name == "serve"
        with serve.make_context(name, rest, parent=context) as parsed:
            assert parsed.params["backend"] == "gramine"
            assert parsed.params["keys"] == KEYS
            assert int(parsed.params["epc"]) == model.epc_size


def test_pods_have_no_privileges(model: Deployed) -> None:
    found = written([model], Cluster(KEYS, claim="models"))
    spec = of("Deployment", found)["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert container(found)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert all("hostPath" not in v for v in spec["volumes"])
    [models] = [m for m in container(found)["volumeMounts"] if m["name"] == "models"]
    assert models["readOnly"] and models["mountPath"] == "/models"


@pytest.mark.parametrize(
    "wrong",
    [
        {"keys": "owner.example"}, {"keys": "ftp://owner"}, {"keys": "http://owner:x"},
        {"keys": "https://"}, {"image": ""}, {"image": "a b"}, {"replicas": -1}, {"claim": "A_b"},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Cluster(**{"keys": KEYS, **wrong})


def test_names_that_kubernetes_does_not_take_are_refused(sealed: Sealed) -> None:
    for name in ("ends-", "x" * 60):
        with pytest.raises(UsageError, match="no name for Kubernetes"):
            deployed(sealed.vessel, name=name)
    alike = [deployed(sealed.vessel, name=name) for name in ("a.b", "A_b")]
    with pytest.raises(UsageError, match="both be vessels-a-b"):
        manifests(alike, Cluster(KEYS))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-o", "m.vessel"], "choose another name"),
        (["-o", "none/k.yaml"], "there is no folder"),
        (["-o", "folder"], "it is a folder"),
        (["folder"], "folder; name the sealed models in it"),
        (["a b.vessel"], "NAME=a b.vessel"),
        (["--replicas", "2147483648"], "--replicas"),
    ],
)
def test_misuse_of_the_command_line_leaves_everything_as_it_was(
    sealed: Sealed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "m.vessel"
    model.write_bytes(sealed.vessel.read_bytes())
    (tmp_path / "folder").mkdir()
    done = CliRunner().invoke(app, ["kubernetes", "m.vessel", "--keys", KEYS, *options])
    assert done.exit_code != 0
    assert words in (str(done.exception) + done.output)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "m.vessel"]
    assert model.read_bytes() == sealed.vessel.read_bytes()


def test_the_command_line_writes_a_file_or_prints(sealed: Sealed, tmp_path: Path) -> None:
    path = tmp_path / "k.yaml"
    command = ["kubernetes", f"one={sealed.vessel}", f"two={sealed.vessel}", "--keys", KEYS]
    done = CliRunner().invoke(app, [*command, "-o", str(path), "--replicas", "2"])
    assert done.exit_code == 0, done.output
    found = list(yaml.safe_load_all(path.read_text()))
    assert [m["kind"] for m in found] == 2 * KINDS
    assert {m["metadata"]["name"] for m in found} == {"vessels-one", "vessels-two"}
    assert found[0]["spec"]["replicas"] == 2
    digest = model_digest(sealed.vessel).hex()
    assert digest in path.read_text()
    printed = CliRunner().invoke(app, [*command, "--replicas", "2"])
    assert list(yaml.safe_load_all(printed.stdout)) == found
