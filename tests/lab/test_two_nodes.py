"""Two nodes that have not been joined: each is somebody, and reaches the other as far as the network lets it."""

from __future__ import annotations

import json
import time

from tests.lab.lab import Lab


def test_each_is_somebody_and_renewed_somebody_else(lab: Lab) -> None:
    def who() -> list[str]:
        return [
            node.succeed("cat /var/lib/mcvirt/node.json; head -c 16 /dev/urandom | sha256sum") for node in lab.nodes
        ]

    first, second = lab.nodes
    for what in (
        *("hostname", "cat /etc/machine-id", "virsh capabilities | grep -m1 '<uuid>'", "cat /var/lib/mcvirt/node.json"),
        *("sha256sum < /run/mcvirt/ca.pem", "head -c 16 /dev/urandom | sha256sum", "ip -br link show eth1"),
    ):
        assert first.succeed(what) != second.succeed(what), what
    for node in lab.nodes:
        assert abs(float(node.succeed("date +%s.%N")) - time.time()) < 10
        assert json.loads(node.succeed("cat /var/lib/mcvirt/node.json"))["name"] == node.name

    first.succeed("touch /root/there && lvcreate -qq -y -L 4M -n there vg0")
    before = who()
    lab.renew()
    assert not set(before) & set(who())
    first.fail("test -e /root/there")
    assert first.lvs() == {}


def test_network_is_cut_healed_and_slow(idle_lab: Lab) -> None:
    first, second = idle_lab.nodes
    second.put(first.get("cat /run/mcvirt/ca.pem"), "/root/ca.pem")
    first.succeed(
        "echo secret-of-alice > /root/password && mcvirt user create alice --user-password-file /root/password"
    )
    second.put(b"secret-of-alice\n", "/root/password", 0o600)
    far = "timeout 20 mcvirt --host node1 --ca-file /root/ca.pem --username alice --password-file /root/password list"
    second.succeed(far)

    for silently in (False, True):
        second.cut(silently=silently)
        second.fail("ping -c 1 -W 1 node1")
        second.fail(far)
        assert first.json("list") == []
        second.heal()
        second.wait_until("ping -c 1 -W 1 node1")
        second.succeed(far)

    second.delay(300)
    said = second.succeed("ping -c 2 -W 5 node1")
    assert float(said.rsplit("= ", 1)[1].split("/")[0]) >= 300
    second.heal()
    assert float(second.succeed("ping -c 2 -W 5 node1").rsplit("= ", 1)[1].split("/")[0]) < 300


def test_states_between(idle_lab: Lab) -> None:
    lab = idle_lab
    first, second = lab.nodes
    first.succeed("echo before > /root/file")
    lab.save("here")
    first.succeed("echo after > /root/file")
    second.cut()
    first.power_off()
    lab.revert("here")
    assert first.succeed("cat /root/file") == "before\n"
    second.wait_until("ping -c 1 -W 1 node1")
    assert abs(float(first.succeed("date +%s")) - time.time()) < 10
    first.mcvirt("list")
    # Also one that had been booted anew.
    first.power_off()
    first.boot()
    first.succeed("echo booted > /root/file")
    lab.revert("here")
    assert first.succeed("cat /root/file") == "before\n"
