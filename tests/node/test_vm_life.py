"""The life of machines, through the real command, judged by the guest, virsh, and a VNC client of our own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests import guest
from tests.node.mcvirt_node import McvirtNode
from tests.node.witness import MIB, boot, create, furnish, image, refused, state, until


@pytest.fixture(scope="module", autouse=True)
def furnished(node: McvirtNode) -> Iterator[None]:
    furnish(node, iso=True)
    yield


def wait_state(node: McvirtNode, name: str, wanted: str) -> None:
    until(lambda: state(node, name) == wanted, f"state {wanted} of {name}", within=20)


def autostarted(node: McvirtNode, name: str) -> bool:
    return node.virsh("domstate", name, check=False).strip() == "running"


def test_from_create_to_delete(node: McvirtNode) -> None:
    made = ("--disk-size", "8MiB", "--network", "lan", "--network", "dmz", "--network", "lan")
    with boot(node, "web1", *made) as screen:
        info = node.json("info", "web1")
        assert (info["state"], info["node"], info["accelerator"], info["machine"]) == (
            "RUNNING", "node1", node.json("info")[0]["accelerator"], "q35",
        )  # fmt: skip
        assert node.json("info")[0]["accelerator_reason"]
        assert screen.wait("memory")["cpus"] == "1"
        disk = screen.wait("disk")
        assert disk.number("size") == 8 * MIB and info["disks"][0]["id"].endswith(disk["serial"])
        assert {line["mac"] for line in guest.lines(screen.said, "nic")} == {each["mac"] for each in info["adapters"]}
        assert [each["network"] for each in info["adapters"]] == ["lan", "dmz", "lan"]
        assert info["uuid"] == node.virsh("domuuid", "web1").strip() and info["usage"]["memory"] > 50 * MIB
        assert "org.qemu.guest_agent.0" in node.virsh("dumpxml", "web1")
        rows = node.mcvirt("list", "--cpu", "--memory", "--disk-size").stdout
        assert all(word in rows for word in ("web1", "RUNNING", "node1", "128 MiB", "8 MiB"))
        assert all(word in node.mcvirt("info", "web1").stdout for word in ("web1", "linux.iso", info["uuid"]))
        screen.type("echo hello\n")
        assert screen.wait("echo").text == "hello"
        log = node.mcvirt("console", "web1", "--log").stdout
        assert guest.READY in log and len(node.mcvirt("console", "web1", "--log", "--tail", "10").stdout) <= 10

        screen.forget()
        node.mcvirt("reset", "web1")
        screen.wait("ready")
        assert node.mcvirt("shutdown", "web1").returncode == 0  # by ACPI, which the guest must understand
        screen.ended()
    wait_state(node, "web1", "STOPPED")
    assert node.virsh("domstate", "web1", "--reason").strip() == "shut off (shutdown)"
    assert guest.parse_counter(image(node, "web1").read_bytes()[guest.COUNTER_OFFSET :][: guest.COUNTER_SIZE])[0] == 2

    node.mcvirt("start", "web1")  # without the ISO: it is taken out
    assert node.json("info", "web1")["iso"] is None and "linux.iso" not in node.virsh("dumpxml", "web1")
    assert "cdrom" not in node.virsh("dumpxml", "web1").split("</os>")[0]
    node.mcvirt("stop", "web1")
    assert node.virsh("domstate", "web1").strip() == "shut off"
    file = image(node, "web1")
    node.mcvirt("delete", "web1")
    assert not file.exists() and node.virsh("list", "--all", "--name").split() == []
    assert node.json("list") == [] and node.json("hard-drive", "list") == []
    assert not (node.state_dir / "console" / f"{info['uuid']}.log").exists()


def test_shutdown_waits_and_stop_may_come_between(node: McvirtNode) -> None:
    create(node, "deaf1", "--disk-size", "8MiB")  # nothing boots on it: nobody hears the power button
    node.mcvirt("start", "deaf1")
    said = refused(node, "shutdown", "deaf1", "--wait", "--timeout", "1", status=1, unchanged=False)
    assert "within 1 s" in said and "mcvirt stop deaf1" in said
    task = node.mcvirt("shutdown", "deaf1", "--wait", "--no-wait").stdout.strip()
    node.mcvirt("stop", "deaf1")
    assert node.mcvirt("task", "watch", task).returncode == 0
    assert state(node, "deaf1") == "STOPPED"
    node.mcvirt("delete", "deaf1")


def test_vnc_asks_for_the_password(node: McvirtNode) -> None:
    create(node, "vnc1")
    node.mcvirt("start", "vnc1")
    port = int(node.mcvirt("info", "vnc1", "--vnc-port").stdout)
    password = node.mcvirt("info", "vnc1", "--vnc-password").stdout.strip()
    assert len(password) == 8 and node.virsh("vncdisplay", "vnc1").strip() == f"127.0.0.1:{port - 5900}"
    code = f"""
import socket
s = socket.create_connection(("127.0.0.1", {port}), 10)
f = s.makefile("rwb", buffering=0)
assert f.read(12) == b"RFB 003.008\\n"
f.write(b"RFB 003.008\\n")
print(list(f.read(f.read(1)[0])))
f.write(bytes([2]))
challenge = f.read(16)
f.write(bytes(16))
print(len(challenge), int.from_bytes(f.read(4), "big"))
"""
    assert node.python(code).stdout.split("\n")[:2] == ["[2]", "16 1"]  # VNC authentication only; refused
    node.mcvirt("stop", "vnc1")
    node.mcvirt("delete", "vnc1")


def test_what_others_do_to_domains_is_seen(node: McvirtNode) -> None:
    create(node, "ext1", "--disk-size", "8MiB", "--network", "lan")
    node.virsh("start", "ext1")
    wait_state(node, "ext1", "RUNNING")
    node.virsh("suspend", "ext1")
    wait_state(node, "ext1", "PAUSED")
    refused(node, "delete", "ext1", says="running")
    node.virsh("resume", "ext1")
    wait_state(node, "ext1", "RUNNING")
    pid = node.host.path("/run/libvirt/qemu/ext1.pid").read_text()
    os.kill(node.host._outer(int(pid)), signal.SIGKILL)
    wait_state(node, "ext1", "STOPPED")
    node.mcvirt("start", "ext1")
    node.virsh("destroy", "ext1")
    wait_state(node, "ext1", "STOPPED")
    node.virsh("undefine", "ext1")
    wait_state(node, "ext1", "MISSING")
    assert "not registered" in node.mcvirt("list").stdout.lower()
    assert any("mcvirt start ext1" in warning for warning in node.json("info", "ext1")["warnings"])
    node.mcvirt("start", "ext1")  # which repairs it
    assert node.virsh("domstate", "ext1").strip() == "running"
    node.virsh("undefine", "ext1")  # and once more, while it runs
    node.mcvirt("stop", "ext1")
    wait_state(node, "ext1", "MISSING")
    node.mcvirt("register", "ext1")
    wait_state(node, "ext1", "STOPPED")
    node.mcvirt("delete", "ext1")


def test_register_and_unregister(node: McvirtNode) -> None:
    create(node, "reg1", "--disk-size", "8MiB", "--network", "lan")
    before = node.virsh("dumpxml", "reg1", "--inactive")
    node.mcvirt("unregister", "reg1")
    assert "reg1" not in node.virsh("list", "--all", "--name")
    assert (
        node.json("info", "reg1")["node"] is None and node.mcvirt("info", "reg1", "--node").stdout == "Unregistered\n"
    )
    refused(node, "start", "reg1", says="mcvirt register reg1")
    refused(node, "unregister", "reg1", says="not registered")
    node.mcvirt("update", "reg1", "--memory", "48", "--add-disk", "4MiB")  # it may be changed all the same
    node.mcvirt("update", "reg1", "--memory", "32", "--delete-disk", "2")
    node.mcvirt("register", "reg1")
    assert node.virsh("dumpxml", "reg1", "--inactive") == before
    node.mcvirt("delete", "reg1")


def test_delete_keeps_what_it_is_told_to_keep(node: McvirtNode) -> None:
    create(node, "keep1", "--disk-size", "8MiB", "--network", "lan")
    file = image(node, "keep1")
    node.mcvirt("delete", "keep1", "--keep-disks")
    assert file.exists() and "keep1" not in node.mcvirt("list").stdout
    (disk,) = node.json("hard-drive", "list")
    assert disk["vm"] is None
    create(node, "keep2")
    node.mcvirt("hard-drive", "attach", disk["id"], "keep2")
    node.mcvirt("delete", "keep2", "--keep-config")
    assert not file.exists() and node.json("info", "keep2")["node"] is None
    assert "keep2" not in node.virsh("list", "--all", "--name")
    node.mcvirt("register", "keep2")
    node.mcvirt("delete", "keep2")


def test_autostart(node: McvirtNode) -> None:
    for name, flag in (("boot1", "--autostart-on-boot"), ("poll1", "--autostart-on-poll"), ("none1", "")):
        create(node, name)
        if flag:
            node.mcvirt("update", name, flag)
    node.stop_daemon()
    node.start_daemon()
    until(lambda: autostarted(node, "boot1") and autostarted(node, "poll1"), "the start of both", within=30)
    assert not autostarted(node, "none1")
    node.mcvirt("stop", "boot1", "poll1")
    node.mcvirt("node", "--set-autostart-interval", "1")
    assert node.mcvirt("node", "--get-autostart-interval").stdout == "1\n"
    until(lambda: autostarted(node, "poll1"), "the start at the next poll", within=30)
    assert not autostarted(node, "boot1")
    node.mcvirt("node", "--set-autostart-interval", "0")
    node.mcvirt("update", "poll1", "--autostart-disable")
    node.mcvirt("stop", "poll1")
    for name in ("boot1", "poll1", "none1"):
        node.mcvirt("delete", name)
