"""Programs of a node that fail, or wait, where a test wants it; and what is left on two nodes of hard drives."""

from __future__ import annotations

from tests.lab.cluster import Cluster
from tests.lab.node import Node

_PROGRAMS = ("drbdadm", "drbdsetup", "lvcreate", "lvremove", "lvextend")
# Before the real one in the path that mcvirtd gives to programs.
_WRAPPER = """#!/bin/sh
me=${0##*/}
if [ -f /run/trouble ]; then
    while read -r program word what; do
        [ "$program" = "$me" ] || continue
        case " $* " in *"$word"*) ;; *) continue ;; esac
        [ "$what" = fail ] && { echo "made to fail" >&2; exit 7; }
        touch "/run/reached-$me"
        while [ -f /run/trouble ]; do sleep 0.2; done
    done < /run/trouble
fi
exec /usr/sbin/"$me" "$@"
"""
_RECORDS = """
import shutil, sqlite3, tempfile
from pathlib import Path
# mcvirtd has the file to itself: a copy is looked at.
with tempfile.TemporaryDirectory() as place:
    for path in Path("/var/lib/mcvirt").glob("state.db*"):
        shutil.copy(path, place)
    db = sqlite3.connect(f"{place}/state.db")
    for row in db.execute("SELECT key FROM record WHERE kind = 'replica_claim'"):
        print("claim of", row[0])
    for row in db.execute("SELECT direction, act, arguments FROM journal"):
        print("due:", *row)
"""


def arm(cluster: Cluster) -> None:
    """Make the nodes' programs such that ``trouble`` can be made with them."""
    for node in cluster.nodes:
        for program in _PROGRAMS:
            node.put(_WRAPPER.encode(), f"/usr/local/sbin/{program}", 0o755)


def trouble(node: Node, program: str, word: str, what: str, *, more: bool = False) -> None:
    """From now on *program*, when it is called with *word*, is to `fail`, or to `wait` until there is ``calm``.

    With *more*, what was said before of other programs holds, too.
    """
    node.succeed(f"rm -f /run/reached-{program}" if more else "rm -f /run/reached-* /run/trouble")
    # It must be whole when it is there.
    line = f"{program} {word} {what}"
    node.succeed(
        f"touch /run/trouble && cp /run/trouble /run/trouble.new && echo '{line}' >> /run/trouble.new && "
        "mv /run/trouble.new /run/trouble"
    )


def reached(node: Node, program: str = "*") -> None:
    """Return when something waits, or *program* does."""
    node.wait_until(f"ls /run/reached-{program}")


def calm(cluster: Cluster) -> None:
    """What waited goes on, and everything works."""
    for node in cluster.nodes:
        node.succeed("rm -f /run/trouble")


def orphans(cluster: Cluster) -> list[str]:
    """Volumes, resource files, resources, claims and dues that belong to no hard drive; asked of LVM and the kernel."""
    known = {disk["id"] for disk in cluster[1].json("hard-drive", "list")}
    found = []
    for node in cluster.nodes:
        there = node.succeed(
            "lvs --noheadings -o lv_name; ls /etc/drbd.d; drbdsetup events2 --now | grep -o 'name:mcvirt[^ ]*' || true"
        ).split()
        found += [f"{node}: {name}" for name in there if "mcvirt-hd-" in name and not any(id in name for id in known)]
        found += [f"{node}: {line}" for line in node.python(_RECORDS).splitlines()]
    return found


def no_orphans(cluster: Cluster, *, within: float = 60.0) -> None:
    """Return when there are none any more: what a node that was away has, is cleared within half a minute."""
    cluster[1].wait_until(lambda: not orphans(cluster), within=within, what="nothing is left behind")
