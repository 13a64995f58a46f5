"""mcvirtd as it is installed, under systemd with all that its unit takes away from it, and what it outlives."""

from __future__ import annotations

from tests.lab.node import Node
from tests.lab.stories import MIB, grow, machine, storage, volume


def test_unit_is_what_was_installed_and_hardened(node: Node) -> None:
    assert node.unit("mcvirtd", "FragmentPath") == "/usr/local/lib/systemd/system/mcvirtd.service"
    assert node.unit("mcvirtd", "UnitFileState") == "enabled"
    assert node.unit("mcvirtd", "Type") == "notify"
    assert node.unit("mcvirtd", "ActiveState") == "active"
    assert node.unit("mcvirtd", "StatusText") == "Serving on port 9090"
    assert node.unit("mcvirtd", "NoNewPrivileges") == "yes"
    assert node.unit("mcvirtd", "WatchdogUSec") == "1min"
    assert set(node.succeed("ls -A /var/lib/mcvirt").split()) >= {"node.json", "pki", "state.db"}
    status = node.succeed("cat /proc/$(systemctl show -P MainPID mcvirtd)/status")
    words = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert words["NoNewPrivs"] == "1" and words["Seccomp"] == "2"
    everything = int(node.succeed("cat /proc/1/status | sed -n 's/^CapBnd:\t//p'"), 16)
    assert int(words["CapBnd"], 16) < everything
    assert "mcvirtd can run here" in node.succeed("mcvirtd --check")
    assert node.journal().count("Traceback") == 0
    # DRBD is at hand, and only mcvirt brings its resources up.
    assert "version: 8.4" in node.succeed("modprobe drbd && cat /proc/drbd")
    assert node.drbd() == {}
    assert node.unit("drbd", "ActiveState") == "inactive"


def test_machine_on_lvm_from_creation_to_end_outlives_the_daemon(node: Node) -> None:
    storage(node, "thick")
    device, bad = machine(node, "tiny"), machine(node, "bad")
    made = node.lvs()[volume(device)]
    assert int(made["lv_size"]) == 16 * MIB and made["pool_lv"] == ""

    node.mcvirt("start", "tiny", "bad")
    assert node.virsh("domstate", "tiny") == "running"
    node.wait_for_guest(bad, boots=1)
    ticks = node.wait_for_guest(device, boots=1)
    # A disk that fails is its own guest's trouble alone.
    node.fail_disk(volume(bad))
    node.fail(f"dd if={bad} of=/dev/null bs=512 count=1 iflag=direct")
    grow(node, "tiny", device)
    ticks = node.wait_for_guest(device, boots=1, beyond=ticks)
    assert {row["name"] for row in node.json("list")} == {"tiny", "bad"}
    node.repair_disk(volume(bad))
    node.mcvirt("stop", "bad")
    node.mcvirt("start", "bad")
    node.wait_for_guest(bad, boots=2)
    node.mcvirt("stop", "bad")
    node.mcvirt("delete", "bad", "--yes")
    assert "denied" not in node.journal() and "EPERM" not in node.journal()

    before = node.unit("mcvirtd", "MainPID")
    # What is installed says 60 s.
    node.put(b"[Service]\nWatchdogSec=8s\n", "/run/systemd/system/mcvirtd.service.d/hasty.conf")
    node.succeed("systemctl daemon-reload")
    node.kill()
    node.wait_restarted(1)
    assert node.unit("mcvirtd", "MainPID") not in (before, "0")
    node.freeze()
    node.fail("timeout 3 mcvirt list")
    node.wait_restarted(2)
    node.succeed("rm /run/systemd/system/mcvirtd.service.d/hasty.conf && systemctl daemon-reload")
    assert "watchdog" in node.journal().lower()
    assert [row["state"] for row in node.json("list")] == ["RUNNING"]
    node.wait_for_guest(device, boots=1, beyond=ticks)

    node.succeed("systemctl restart libvirtd")
    node.wait_until("mcvirt list --json | grep -q RUNNING")
    node.mcvirt("shutdown", "tiny", "--wait")
    assert node.virsh("domstate", "tiny") == "shut off"
    assert node.written(device).whole
    node.mcvirt("start", "tiny")
    node.wait_for_guest(device, boots=2)
    node.mcvirt("stop", "tiny")
    node.mcvirt("delete", "tiny", "--yes")
    assert volume(device) not in node.lvs()
    assert node.virsh("list", "--all", "--name") == ""
    assert node.json("list") == []
