"""DRBD as the kernel has it: enabling, the verbs, the events that are read, handlers, and what two nodes know of it."""

from __future__ import annotations

import json

import pytest

from tests.lab.cluster import Cluster
from tests.lab.node import Node
from tests.lab.replica import Replica

COMMON = "/etc/drbd.d/global_common.conf"
SPOOL = "/var/lib/mcvirt/drbd"

FOLLOW = """
import json, threading
from mcvirtd.host import drbd
from mcvirtd.drbd.reader import Reader
reader = Reader(drbd.events)
reader.start()
assert reader.wait_alive(30)
name = "NAME"
with reader.follow(name) as followed:
    drbd.verify(name)
    def over(events):
        words = [event.fields.get("replication") for event in events if event.kind == "peer-device"]
        return "VerifyS" in words and words[-1] == "Established" or "VerifyT" in words and words[-1] == "Established"
    events = followed.wait(over, 120)
    state = reader.wait(name, lambda state: state and not state.checking, 10)
print(json.dumps({"out_of_sync": state.out_of_sync, "words": [e.fields.get("replication") for e in events]}))
reader.stop()
"""


def as_the_unit_does(node: Node, code: str) -> None:
    """Run Python code with what mcvirtd's unit leaves it: no other capability, and no other place to write to."""
    node.put(code.encode(), "/usr/local/share/verbs.py")
    python = "/usr/local/lib/mcvirt/current/bin/python3 -I"
    node.succeed(
        f"sed -E -e 's|^ExecStart=.*|ExecStart={python} /usr/local/share/verbs.py|' "
        "-e 's/^Type=.*/Type=oneshot/' -e '/^(Notify|Restart|Watchdog|StateDir|RuntimeDir|Wants|After|Wanted)/d' "
        "$(systemctl show -P FragmentPath mcvirtd) > /run/systemd/system/lab-verbs.service && systemctl daemon-reload"
    )
    done = node.run("systemctl start lab-verbs")
    assert done.returncode == 0, node.journal("lab-verbs")


def follow_verify(replica: Replica, number: int) -> dict[str, object]:
    node = replica.nodes[number]
    return json.loads(node.python(FOLLOW.replace("NAME", replica.name), within=180))


def enable(node: Node) -> str:
    """What enabling DRBD says, warnings included."""
    return node.succeed("mcvirt drbd enable 2>&1")


@pytest.fixture
def enabled(cluster: Cluster) -> Cluster:
    cluster[1].mcvirt("drbd", "enable")
    return cluster


def test_enabling_looks_at_all_nodes_first_and_says_all_that_is_missing(cluster: Cluster) -> None:
    first, second = cluster.nodes
    before = first.succeed(f"cat {COMMON}")
    first.succeed("chmod -x $(readlink -f /usr/local/lib/mcvirt/current/bin/mcvirt-drbd-handler)")
    second.succeed("mv /usr/sbin/drbdadm /usr/sbin/drbdadm.away; rmmod drbd")
    said = second.fail("mcvirt drbd enable")
    assert "Node 'node1': the program /usr/local/lib/mcvirt/current/bin/mcvirt-drbd-handler is missing" in said
    assert "Node 'node2': drbd-utils is not installed" in said and "kernel module drbd is not loaded" in said
    assert first.succeed(f"cat {COMMON}") == before, "a refusal changed something"

    first.succeed("chmod +x $(readlink -f /usr/local/lib/mcvirt/current/bin/mcvirt-drbd-handler)")
    second.succeed("mv /usr/sbin/drbdadm.away /usr/sbin/drbdadm; modprobe drbd")
    said = enable(second)
    assert "Successfully enabled DRBD" in said
    assert f"Node node1: the configuration that DRBD had before is kept as {COMMON}.before-mcvirt" in said
    assert "LVM looks into DRBD's devices" in said
    for node in cluster.nodes:
        assert node.succeed(f"cat {COMMON}.before-mcvirt") == before
        text = node.succeed(f"cat {COMMON}")
        assert "ping-timeout 40;" in text and "after-sb-2pri disconnect;" in text
        node.wait_until("test -S /run/mcvirt/drbd.sock && pgrep -f 'drbdsetup events2'")
        assert node.succeed(f"stat -c %a {SPOOL} /run/mcvirt/drbd.sock").split() == ["700", "600"]
    assert cluster[1].json("drbd", "list") == []
    again = enable(first)
    assert "Successfully enabled DRBD" in again and "kept as" not in again


def test_a_file_that_was_changed_is_repaired_by_enabling_again(enabled: Cluster) -> None:
    first = enabled[1]
    ours = first.succeed(f"cat {COMMON}")
    first.succeed(f"echo 'common {{ }}' > {COMMON}")
    assert "kept as" in enable(first)
    assert first.succeed(f"cat {COMMON}") == ours


def test_verbs_and_reader_agree_with_the_kernel(enabled: Cluster) -> None:
    first, second = enabled.nodes
    replica = Replica(enabled.nodes)
    state = replica.wait(first, "True")
    kernel = first.succeed(f"drbdadm role {replica.name}; drbdadm dstate {replica.name}; drbdadm cstate {replica.name}")
    assert kernel.split() == [
        f"{state['role']}/{state['peer_role']}",
        f"{state['disk']}/{state['peer_disk']}",
        state["connection"],
    ]
    assert state["size"] == 512 * int(first.succeed(f"cat /sys/block/drbd{replica.minor}/size"))
    assert first.succeed(f"stat -c %a /etc/drbd.d/{replica.name}.res").strip() == "600"

    # Just made: clean, seen from beginning to end from either side.
    for number in (0, 1):
        seen = follow_verify(replica, number)
        assert seen["out_of_sync"] == 0, seen
    # Roles, and a device that is in use.
    replica.verb(first, f"primary({replica.name!r})")
    replica.wait(second, "state.peer_role == 'Primary'")
    replica.write(first, 7)
    said = first.python(
        "from mcvirtd.host import drbd\nfrom mcvirt.errors import DrbdDeviceOpen\n"
        f"file = open({replica.device!r}, 'rb')\n"
        f"for verb in (drbd.secondary, drbd.down):\n"
        f"    try: verb({replica.name!r})\n"
        "    except DrbdDeviceOpen as error: print(error)\n"
    )
    assert said.count(f"A program on this node has the device of DRBD resource {replica.name} open.") == 2, said
    replica.verb(first, f"secondary({replica.name!r})")
    # All of it works in the unit's confines, too.
    as_the_unit_does(
        second,
        "from mcvirtd.host import drbd\n"
        f"name = {replica.name!r}\n"
        "drbd.disconnect(name)\ndrbd.connect(name)\n"
        "drbd.primary(name, force=True)\ndrbd.secondary(name)\ndrbd.down(name)\n"
        "assert drbd.faults() == [], drbd.faults()\n"
        "drbd.up(name)\n",
    )
    replica.wait(second, "state.both_good")
    # Up, down and again are as good as once.
    replica.verb(first, f"up({replica.name!r})")
    replica.verb(first, f"two_primaries({replica.name!r}, True)")
    replica.verb(first, f"two_primaries({replica.name!r}, False)")
    # Differences are found exactly, by the reader and by the handlers on both sides.
    replica.damage(second, 2)
    assert follow_verify(replica, 0)["out_of_sync"] == 2 * 4096
    for node in enabled.nodes:
        node.wait_until(f"journalctl -u mcvirtd | grep 'DRBD: out-of-sync of {replica.name}'")
        assert node.succeed(f"ls {SPOOL}").split() == ["split"]
    # The whole of it is copied again.
    replica.verb(second, f"invalidate({replica.name!r})")
    replica.wait(second, "state.both_good and not state.out_of_sync")
    assert replica.sum(first) == replica.sum(second)
    for node in enabled.nodes:
        replica.verb(node, f"down({replica.name!r})")
        replica.verb(node, f"down({replica.name!r})")
        replica.verb(node, f"remove_resource({replica.name!r})")
        assert replica.name not in node.run("drbdsetup status").stdout
        node.fail(f"test -e /sys/block/drbd{replica.minor}")


def test_a_split_is_told_on_both_nodes_also_while_mcvirtd_is_away(enabled: Cluster) -> None:
    first, second = enabled.nodes
    replica = Replica(enabled.nodes)
    second.succeed("systemctl stop mcvirtd")
    second.cut()
    for node in enabled.nodes:
        replica.wait(node, "not state.connected", within=60)
        # node1's mcvirtd does not know the resource, and so its answer forbids it; node2's is away and gives none.
        if node is first:
            with pytest.raises(AssertionError, match="Refusing to be Primary while peer is not outdated"):
                replica.verb(node, f"primary({replica.name!r})")
        replica.verb(node, f"primary({replica.name!r}, force={node is first})")
        replica.write(node, 50)
    second.plug_in()
    for node in enabled.nodes:
        replica.wait(node, "state.connection == 'StandAlone'")
    first.wait_until(f"test -e {SPOOL}/split/{replica.name}")
    assert "have split. Nothing was discarded" in first.journal()
    second.wait_until(f"ls {SPOOL}/*split-brain.json")
    second.succeed("systemctl start mcvirtd")
    second.wait_until(f"test -e {SPOOL}/split/{replica.name} && ! ls {SPOOL}/*.json")
    # It is known again after a restart, and forgotten when the sides have taken each other's data.
    second.succeed("systemctl restart mcvirtd")
    second.succeed(f"test -e {SPOOL}/split/{replica.name}")
    replica.verb(second, f"secondary({replica.name!r})")
    replica.verb(second, f"disconnect({replica.name!r})")
    replica.verb(second, f"connect({replica.name!r}, discard_my_data=True)")
    replica.verb(first, f"connect({replica.name!r})")
    for node in enabled.nodes:
        replica.wait(node, "state.both_good")
        node.wait_until(f"! test -e {SPOOL}/split/{replica.name}")
    assert replica.sum(first) == replica.sum(second)


def test_a_node_that_joins_later_is_made_ready_by_itself(lab) -> None:  # type: ignore[no-untyped-def]
    first, second = lab.nodes
    first.mcvirt("node", "--set-ip-address", first.address)
    second.mcvirt("node", "--set-ip-address", second.address)
    first.mcvirt("drbd", "enable")
    joined = Cluster(lab)
    second.succeed("mv /usr/sbin/drbdadm /usr/sbin/drbdadm.away")
    string = second.mcvirt("cluster", "get-connect-string").encode()
    said = first.run("mcvirt cluster add-node --connect-string -", input=string)
    assert said.returncode != 0 and "drbd-utils is not installed" in said.stdout + said.stderr
    second.succeed("mv /usr/sbin/drbdadm.away /usr/sbin/drbdadm")
    joined.add(second)
    joined.wait_together()
    second.wait_until(f"grep -q 'Written by mcvirt' {COMMON} && test -S /run/mcvirt/drbd.sock")
