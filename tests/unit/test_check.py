"""`mcvirtd --check` says everything at once."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mcvirt.errors import LibvirtUnreachable
from mcvirtd import settings
from mcvirtd.check import Finding, check, check_file
from mcvirtd.cluster import pki
from mcvirtd.probes import IN_USE, Probes
from mcvirtd.settings import Settings


def space(free: int, files: int = 10**6) -> Callable[[Path], os.statvfs_result]:
    return lambda path: os.statvfs_result((4096, 1, 10**9, free, free, files, files, files, 0, 255))


def good(**others: Any) -> Probes:
    answers: dict[str, Any] = {
        "user_id": lambda: 0,
        "which": lambda name: f"/usr/bin/{name}",
        "clock": lambda: 1_800_000_000.0,
        "sqlite": lambda: (3, 40, 1),
        "file_system": lambda path: "ext4",
        "space": space(10**12),
        "kvm": lambda: "",
        "port": lambda address, port: "",
        "served": lambda address, port: None,
        "lvm": list,
    }
    return Probes(**{**answers, **others})


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    data = {"node": {"name": "n1"}, "paths": {"state": f"{tmp_path}/state", "run": f"{tmp_path}/run"}}
    return settings.parse(data)


def no_libvirt(uri: str) -> None:
    raise LibvirtUnreachable(node="n1", uri=uri, reason="Connection refused.")


def test_a_sound_machine_has_no_findings_and_nothing_is_made(here: Settings, tmp_path: Path) -> None:
    assert check(here, frozen_name="n1", libvirt=lambda uri: None, probes=good()) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("probe", "severity", "word"),
    [
        ({"user_id": lambda: 1000}, "error", "root"),
        ({"lvm": lambda: ["LVM looks into DRBD's devices."]}, "warning", "global_filter"),
        ({"which": lambda name: None if name == "qemu-img" else "x"}, "error", "apt-get install qemu-utils"),
        ({"which": lambda name: None if name == "lvcreate" else "x"}, "warning", "lvm2"),
        ({"clock": lambda: 0.0}, "error", "1970-01-01"),
        ({"sqlite": lambda: (3, 7, 17)}, "error", "3.7.17"),
        ({"file_system": lambda path: "nfs4"}, "error", "network file system"),
        ({"file_system": lambda path: "tmpfs"}, "warning", "reboot"),
        ({"space": space(10 * 2**20)}, "error", "10 MiB"),
        ({"space": space(500 * 2**20)}, "warning", "500 MiB"),
        ({"space": space(10**12, files=3)}, "error", "3 more files"),
        ({"kvm": lambda: "/dev/kvm: No such file or directory."}, "warning", "slowly"),
        ({"port": lambda address, port: IN_USE}, "error", "9090"),
        ({"port": lambda address, port: "Cannot assign requested address."}, "error", "listen.address"),
    ],
)
def test_each_trouble_is_one_finding_with_a_way_out(
    here: Settings, probe: dict[str, Any], severity: str, word: str
) -> None:
    (found,) = check(here, probes=good(**probe))
    assert found.severity == severity
    assert word in f"{found.text} {found.fix}"
    assert found.text.endswith(".") and found.fix


def test_everything_is_said_at_once_and_errors_first(here: Settings) -> None:
    probes = good(
        user_id=lambda: 1,
        which=lambda name: None,
        clock=lambda: 0.0,
        space=space(0, files=1),
        kvm=lambda: "no.",
        port=lambda address, port: IN_USE,
    )
    found = check(here, frozen_name="old", libvirt=no_libvirt, probes=probes)
    severities = [each.severity for each in found]
    assert severities == sorted(severities)
    assert severities.count("error") == 9 and severities.count("warning") == 3
    text = " ".join(each.text for each in found)
    for word in ("root", "'old'", "qemu-system-x86_64", "lvcreate", "clock", "Connection refused", "9090", "KVM"):
        assert word in text


def test_kvm_is_needed_only_where_it_was_asked_for(here: Settings) -> None:
    def only(accelerator: str) -> list[str]:
        chosen = msgspec.structs.replace(here, libvirt=settings.Libvirt(accelerator=accelerator))
        return [found.severity for found in check(chosen, probes=good(kvm=lambda: "none."))]

    assert (only("kvm"), only("auto"), only("tcg")) == (["error"], ["warning"], [])


def test_a_port_that_our_own_daemon_serves_is_free_and_any_port_needs_no_look(here: Settings) -> None:
    identity = pki.ensure(here.paths.state / pki.DIRECTORY, "n1")
    ours = ssl.PEM_cert_to_DER_cert(identity.certificate.read_text())
    used = {"port": lambda address, port: IN_USE}
    assert check(here, probes=good(**used, served=lambda address, port: ours)) == []
    assert len(check(here, probes=good(**used, served=lambda address, port: ours + b"x"))) == 1
    any_port = msgspec.structs.replace(here, listen=settings.Listen(port=0))
    assert check(any_port, probes=good(**used)) == []


def test_directories_that_others_may_write_to_or_that_are_files_are_errors(here: Settings, tmp_path: Path) -> None:
    here.paths.state.mkdir(mode=0o777)
    here.paths.state.chmod(0o777)
    here.paths.run.write_text("")
    found = check(here, probes=good())
    assert [each.severity for each in found] == ["error", "error"]
    assert f"chmod 700 {here.paths.state}" in found[0].fix
    assert f"{here.paths.run} is in the way" in found[1].text


def test_the_settings_file_is_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "mcvirtd.toml"
    path.write_text("[listen]\nport = 'x'\nprot = 1\n")
    loaded, found = check_file(path, host_name=lambda: "n1")
    assert loaded is None and len(found) == 2
    path.write_text("[listen]\nport = 1\n")
    path.chmod(0o666)
    loaded, found = check_file(path, host_name=lambda: "n1")
    assert loaded is not None and loaded.listen.port == 1
    assert found == [
        Finding(
            severity="error",
            text=f"Others than its owner may change {path}, and so what mcvirtd does as root.",
            fix=f"chmod go-w {path}",
        )
    ]
    path.chmod(0o644)
    assert check_file(path, host_name=lambda: "n1")[1] == []
