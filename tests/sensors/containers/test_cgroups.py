# SPDX-License-Identifier: Apache-2.0
"""Which container a path means, for every form that runtimes are known to make; and the tree of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors.containers import cgroups
from sensors.containers.cgroups import Place, parse

A, B = "a" * 64, "b1" * 32
UID = "01234567-89ab-cdef-0123-456789abcdef"
UNDER = UID.replace("-", "_")

FORMS = [
    (f"/docker/{A}", A, "docker", ""),
    (f"/system.slice/docker-{A}.scope", A, "docker", ""),
    (f"/actions_job/{A}", A, "", ""),
    (f"/kubepods/besteffort/pod{UID}/{A}", A, "", UID),
    (f"/kubepods/pod{UID}/{A}", A, "", UID),
    (f"/kubepods/burstable/pod{UID}/crio-{A}", A, "cri-o", UID),
    (f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDER}.slice/cri-containerd-{A}.scope", A, "containerd", UID),
    (f"/kubepods.slice/kubepods-pod{UNDER}.slice/crio-{A}.scope", A, "cri-o", UID),
    (f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{UNDER}.slice/cri-containerd-{A}.scope", A, "containerd", UID),
    (f"/kubepods/burstable/pod{'0' * 32}/{A}", A, "", "0" * 32),
    (f"/libpod_parent/libpod-{A}", A, "podman", ""),
    (f"/machine.slice/libpod-{A}.scope", A, "podman", ""),
    (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope", A, "podman", ""),
    (f"/default/{A}", A, "", ""),
    (f"/k8s.io/{A}", A, "", ""),
    (f"/system.slice/nerdctl-{A}.scope", A, "containerd", ""),
]  # fmt: skip

HOSTS = [
    "/", "/init.scope", "/system.slice/ssh.service", "/user.slice/user-0.slice/session-3.scope", "/docker", "/kubepods",
    f"/kubepods/burstable/pod{UID}", f"/machine.slice/libpod-conmon-{A}.scope", "/libpod_parent/conmon", "/mybox",
    f"/docker/{A[:12]}",
]  # fmt: skip


@pytest.mark.parametrize(("path", "id_", "runtime", "pod"), FORMS)
def test_a_container_is_known_by_its_path(path: str, id_: str, runtime: str, pod: str) -> None:
    assert parse(path) == Place(id_, path, runtime, pod)


@pytest.mark.parametrize("path", HOSTS)
def test_a_host_cgroup_is_no_container(path: str) -> None:
    assert parse(path) is None


@pytest.mark.parametrize(("path", "id_", "runtime", "pod"), FORMS)
def test_what_is_inside_belongs_to_the_outer_container(path: str, id_: str, runtime: str, pod: str) -> None:
    for inner in ("/init.scope", "/system.slice/cron.service", f"/docker/{B}", f"/kubepods/pod{UID}/{B}", "/container"):
        assert parse(path + inner) == Place(id_, path, runtime, pod)


@given(st.lists(st.text(alphabet="abcdef0123456789-_.scopelice", min_size=1, max_size=70), max_size=6))
def test_a_container_lies_on_its_own_path(parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    place = parse(path)
    if place is not None:
        assert path == place.path or path.startswith(place.path + "/")
        assert parse(place.path) == place


def test_parents_and_services_are_told_from_containers() -> None:
    assert cgroups.is_parent("/docker")
    assert cgroups.is_parent(f"/kubepods/burstable/pod{UID}")
    assert not cgroups.is_parent("/mybox")
    assert not cgroups.is_parent(f"/docker/{A}")
    assert cgroups.is_host("/system.slice/ssh.service")
    assert cgroups.is_host("/user.slice/user-0.slice/session-3.scope")
    assert not cgroups.is_host("/mybox")


def test_no_cgroup2_says_how_to_get_it(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("proc /proc proc rw 0 0\n")
    with pytest.raises(Exception, match="mount -t cgroup2"):
        cgroups.mount_point(str(mounts))


@pytest.mark.kernel
def test_ids_are_the_kernels(kernel_cgroup_id: Callable[[str], int]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: makes a cgroup")
    mount = cgroups.mount_point()
    path = f"/hauberk-test-{os.getpid()}-{time.monotonic_ns()}"
    os.mkdir(mount + path)
    try:
        seen = dict(cgroups.scan(mount))
        (id_,) = [id_ for id_, one in seen.items() if one == path]
        assert id_ == cgroups.cgroup_id(mount, path) == kernel_cgroup_id(path)
        assert cgroups.first_pid(mount, path) == 0
    finally:
        os.rmdir(mount + path)
    assert cgroups.cgroup_id(mount, path) == 0


def test_this_process_has_namespaces_and_a_cgroup() -> None:
    pid_ns, mnt_ns = cgroups.namespaces(os.getpid())
    assert f"[{pid_ns}]" in os.readlink("/proc/self/ns/pid")
    assert f"[{mnt_ns}]" in os.readlink("/proc/self/ns/mnt")
    assert cgroups.of_pid(os.getpid()).startswith("/")
    assert cgroups.of_pid(2**22 + 1) == ""
    assert cgroups.namespaces(2**22 + 1) == (0, 0)


def test_a_process_is_found_from_within_a_cgroup_namespace(tmp_path: Path) -> None:
    """As in a pod: what the kernel then writes of another process is relative to the namespace's root."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes cgroups and a cgroup namespace")
    mount = Path(cgroups.mount_point())
    mine, other = mount / f"hauberk-test-ns-{os.getpid()}/pod/us", mount / f"hauberk-test-ns-{os.getpid()}/them"
    for one in (mine, other):
        one.mkdir(parents=True)
    sleeping = subprocess.Popen(["sleep", "60"])
    try:
        (other / "cgroup.procs").write_text(str(sleeping.pid))
        program = f"import sys; from sensors.containers import cgroups; print(cgroups.of_pid({sleeping.pid}))"
        script = f'echo $$ >{mine}/cgroup.procs; exec unshare -C "$0" -c "$1"'
        done = subprocess.run(
            ["sh", "-c", script, sys.executable, program], capture_output=True, text=True, check=False
        )
        assert (done.stdout.strip(), done.returncode) == (f"/{other.relative_to(mount)}", 0), done.stderr
        assert cgroups.of_pid(sleeping.pid) == f"/{other.relative_to(mount)}"
    finally:
        sleeping.kill()
        sleeping.wait()
        for one in (mine, mine.parent, other, other.parent):
            one.rmdir()
