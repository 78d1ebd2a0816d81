"""The EPC of a machine: what its kernel and the cgroups of a process say, on made-up roots."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vessels.errors import UsageError
from vessels.serve.capacity import epc_size

MIB = 1 << 20


def node(root: Path, number: int, text: str) -> None:
    folder = root / f"sys/devices/system/node/node{number}/x86"
    folder.mkdir(parents=True)
    (folder / "sgx_total_bytes").write_text(text)


def cgroup(root: Path, path: str) -> None:
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(f"4:memory:/else\n0::{path}\n")


def limit(root: Path, path: str, text: str, mount: str = "sys/fs/cgroup") -> None:
    folder = root / mount / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "misc.max").write_text(text)


def test_a_figure_is_taken_as_it_is() -> None:
    assert epc_size("93MiB") == 93 * MIB
    assert epc_size("97517568") == 97517568
    assert epc_size("none") is None


@pytest.mark.parametrize("text", ["", "much", "-1MiB", "0", "93 MiX", "AUTO", "None"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--epc: .*auto or none"):
        epc_size(text)


def test_the_nodes_add_up(tmp_path: Path) -> None:
    node(tmp_path, 0, f"{64 * MIB}\n")
    node(tmp_path, 1, f"{32 * MIB}\n")
    node(tmp_path, 12, "0\n")
    assert epc_size("auto", root=tmp_path) == 96 * MIB


def test_a_machine_without_epc_needs_a_figure(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no EPC.*Give a figure"):
        epc_size("auto", root=tmp_path)
    # As kernels report it where SGX is disabled.
    node(tmp_path, 0, "0\n")
    with pytest.raises(UsageError, match=r"no EPC.*Give a figure"):
        epc_size("auto", root=tmp_path)


@pytest.mark.parametrize("text", ["", "many\n", "12 34", "-5", "0x100", "١٢", "1.5"])
def test_a_node_that_says_no_number_is_refused_by_its_file(tmp_path: Path, text: str) -> None:
    node(tmp_path, 0, text)
    with pytest.raises(UsageError, match=r"node0/x86/sgx_total_bytes.*Give a figure"):
        epc_size("auto", root=tmp_path)


@pytest.mark.parametrize("mount", ["sys/fs/cgroup", "sys/fs/cgroup/unified"])
def test_the_tightest_cgroup_around_holds(tmp_path: Path, mount: str) -> None:
    node(tmp_path, 0, f"{128 * MIB}\n")
    cgroup(tmp_path, "/pods/one/container")
    limit(tmp_path, "pods", f"sgx_epc {48 * MIB}\n", mount)
    limit(tmp_path, "pods/one", "sgx_epc max\n", mount)
    limit(tmp_path, "pods/one/container", f"sev 3\nsgx_epc {64 * MIB}\ntdx max\n", mount)
    limit(tmp_path, "pods/two", "sgx_epc 4096\n", mount)
    assert epc_size("auto", root=tmp_path) == 48 * MIB
    limit(tmp_path, "pods/one/container", f"sgx_epc {16 * MIB}\n", mount)
    assert epc_size("auto", root=tmp_path) == 16 * MIB


def test_more_than_there_is_is_no_more(tmp_path: Path) -> None:
    node(tmp_path, 0, f"{64 * MIB}\n")
    cgroup(tmp_path, "/a")
    limit(tmp_path, "a", f"sgx_epc {1 << 40}\n")
    assert epc_size("auto", root=tmp_path) == 64 * MIB


@pytest.mark.parametrize("path", ["/", "/kubepods/pod1/c", "/../../elsewhere", "/../.."])
def test_in_a_container_the_mount_is_its_own_cgroup(tmp_path: Path, path: str) -> None:
    node(tmp_path, 0, f"{64 * MIB}\n")
    cgroup(tmp_path, path)
    limit(tmp_path, "", f"sgx_epc {8 * MIB}\n")
    assert epc_size("auto", root=tmp_path) == 8 * MIB


def test_other_resources_and_other_hierarchies_do_not_count(tmp_path: Path) -> None:
    node(tmp_path, 0, f"{64 * MIB}\n")
    cgroup(tmp_path, "/a")
    limit(tmp_path, "a", "sgx_epc_old 1\nsev 2\n")
    limit(tmp_path, "else", "sgx_epc 4096\n")
    assert epc_size("auto", root=tmp_path) == 64 * MIB


def test_a_cgroup_without_any_epc_needs_a_figure(tmp_path: Path) -> None:
    node(tmp_path, 0, f"{64 * MIB}\n")
    cgroup(tmp_path, "/a")
    limit(tmp_path, "a", "sgx_epc 0\n")
    with pytest.raises(UsageError, match=r"cgroup.*Give a figure"):
        epc_size("auto", root=tmp_path)


@pytest.mark.parametrize("line", ["sgx_epc", "sgx_epc lots", "sgx_epc -1", "sgx_epc 1 2"])
def test_a_limit_that_is_none_is_refused_by_its_file(tmp_path: Path, line: str) -> None:
    node(tmp_path, 0, f"{64 * MIB}\n")
    cgroup(tmp_path, "/a/b")
    limit(tmp_path, "a", line + "\n")
    with pytest.raises(UsageError, match=r"cgroup/a/misc\.max.*Give a figure"):
        epc_size("auto", root=tmp_path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    node(tmp_path, 0, "")
    file = tmp_path / "sys/devices/system/node/node0/x86/sgx_total_bytes"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=re.escape(str(file))):
        epc_size("auto", root=tmp_path)


@given(
    nodes=st.lists(st.integers(1, 1 << 40), min_size=1, max_size=4),
    limits=st.lists(st.none() | st.integers(1, 1 << 40), max_size=5),
)
def test_never_more_than_the_nodes_have_nor_any_cgroup_allows(
    tmp_path_factory: pytest.TempPathFactory, nodes: list[int], limits: list[int | None]
) -> None:
    root = tmp_path_factory.mktemp("root")
    for number, size in enumerate(nodes):
        node(root, number, f"{size}\n")
    names = [f"g{i}" for i in range(len(limits))]
    cgroup(root, "/" + "/".join(names))
    for depth, allowed in enumerate(limits):
        text = "max" if allowed is None else str(allowed)
        limit(root, "/".join(names[: depth + 1]), f"sgx_epc {text}\n")
    expected = min([sum(nodes), *(a for a in limits if a is not None)])
    assert epc_size("auto", root=root) == expected
