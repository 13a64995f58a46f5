"""Programs of a node that fail, or wait, where a test wants it; and what is left on two nodes of hard drives."""

from __future__ import annotations

from tests.lab.cache import LabFailed
from tests.lab.cluster import Cluster
from tests.lab.node import Node

_PROGRAMS = ("drbdadm", "drbdsetup", "lvcreate", "lvremove", "lvextend")
# Before the real one in the path that mcvirtd gives to programs.
_WRAPPER = """#!/bin/sh
me=${0##*/}
hold() {
    touch "/run/reached-$me-$1"
    while [ -f /run/trouble ]; do sleep 0.2; done
}
late=
if [ -f /run/trouble ]; then
    while read -r program word what; do
        [ "$program" = "$me" ] || continue
        case " $* " in *$word*) ;; *) continue ;; esac
        case $what in
            fail) echo "made to fail" >&2; exit 7 ;;
            late) late=$word ;;
            *) hold "$word" ;;
        esac
    done < /run/trouble
fi
[ "$late" ] || exec /usr/sbin/"$me" "$@"
/usr/sbin/"$me" "$@"
status=$?
hold "$late"
exit $status
"""
_RECORDS = """
import shutil, sqlite3, tempfile
from pathlib import Path
# mcvirtd has the file to itself: a copy is looked at.
with tempfile.TemporaryDirectory() as place:
    for path in Path("/var/lib/mcvirt").glob("state.db*"):
        shutil.copy(path, place)
    db = sqlite3.connect(f"{place}/state.db")
    for row in db.execute("SELECT kind, key FROM record WHERE kind IN ('replica_claim', 'former_leg')"):
        print(*row)
    for row in db.execute("SELECT direction, act, arguments FROM journal"):
        print("due:", *row)
"""


def arm(cluster: Cluster) -> None:
    """Make the nodes' programs such that ``trouble`` can be made with them."""
    for node in cluster.nodes:
        for program in _PROGRAMS:
            node.put(_WRAPPER.encode(), f"/usr/local/sbin/{program}", 0o755)


def trouble(node: Node, program: str, word: str, what: str, *, more: bool = False) -> None:
    """From now on *program*, when it is called with *word*, is to `fail`, or to `wait` until there is ``calm``, before
    it does anything, or after that (`late`).

    *word* is a part of its arguments, a space between each, and may have the shell's `*` and `?`, but no space. With
    *more*, what was said before of other programs holds, too.
    """
    node.succeed("true" if more else "rm -f /run/reached-* /run/trouble")
    # It must be whole when it is there.
    line = f"{program} {word} {what}"
    node.succeed(
        f"touch /run/trouble && cp /run/trouble /run/trouble.new && echo '{line}' >> /run/trouble.new && "
        "mv /run/trouble.new /run/trouble"
    )


def reached(node: Node, program: str = "*", word: str = "") -> None:
    """Return when something waits, or *program* does, or that does with *word*."""
    name = f"'{program}-{word}'" if word else f"{program}-*"
    node.wait_until(f"ls /run/reached-{name}")


def calm(cluster: Cluster) -> None:
    """What waited goes on, and everything works."""
    for node in cluster.nodes:
        if node.machine.is_on:
            node.succeed("rm -f /run/trouble")


def due(node: Node) -> list[str]:
    """What a node has written down that is to be done still, and the claims that it knows."""
    return node.python(_RECORDS).splitlines()


def orphans(cluster: Cluster) -> list[str]:
    """Volumes, resource files and resources that belong to no hard drive, asked of LVM and the kernel; and the claims,
    sides to be deleted and dues that there are."""
    known = {disk["id"] for disk in cluster[1].json("hard-drive", "list")}
    found = []
    for node in cluster.nodes:
        there = node.succeed(
            "lvs --noheadings -o lv_name; ls /etc/drbd.d; drbdsetup events2 --now | grep -o 'name:mcvirt[^ ]*' || true"
        ).split()
        found += [f"{node}: {name}" for name in there if "mcvirt-hd-" in name and not any(id in name for id in known)]
        found += [f"{node}: {line}" for line in due(node)]
    return found


def no_orphans(cluster: Cluster, *, within: float = 60.0) -> None:
    """Return when there are none any more: what a node that was away has, is cleared within half a minute."""
    cluster[1].wait_until(lambda: not orphans(cluster), within=within, what="nothing is left behind")


def untidy(cluster: Cluster) -> list[str]:
    """Where the nodes' volumes, resource files and resources are not exactly those of the hard drives on record, both
    sides of each equal, Secondary and as long as is said; and what is due still. All drives are to be replicated."""
    drives = cluster[1].json("hard-drive", "list")
    resources = {f"mcvirt-{drive['id']}": drive for drive in drives}
    volumes = {f"vg0/{drive['volume']}-drbd-{half}" for drive in drives for half in ("raw", "meta")}
    found = [f"{drive['id']} is being deleted" for drive in drives if drive["deleting"]]
    if cluster[2].json("hard-drive", "list") != drives:
        found.append("the nodes know different hard drives")
    for node in cluster.nodes:
        files = {name.removesuffix(".res") for name in node.succeed("ls /etc/drbd.d").split() if "mcvirt-" in name}
        kernel = node.drbd()
        for what, wanted, there in (
            ("volumes", volumes, {name for name in node.lvs() if "mcvirt-hd-" in name}),
            ("files", set(resources), files),
            ("resources", set(resources), set(kernel)),
        ):
            if wanted != there:
                found.append(f"{node}: {what}: missing {wanted - there}, too many {there - wanted}")
        for name in set(resources) & set(kernel):
            if (seen := _seen(kernel[name])) != _RESTING:
                found.append(f"{node}: {name}: {seen}")
            # Nobody can open the device of a Secondary.
            size = int(node.succeed(f"cat /sys/block/drbd{kernel[name]['device']['minor']}/size")) * 512
            if size != resources[name]["size"]:
                found.append(f"{node}: {name} has {size} bytes, and {resources[name]['size']} are on record")
        found += [f"{node}: {line}" for line in due(node)]
        found += [f"{node}: {task}" for task in node.json("task", "list") if task["state"] in ("RUNNING", "STUCK")]
    return found


_RESTING = ("Secondary", "Connected", "UpToDate", "UpToDate", "Established", "0")


def _seen(facts: dict[str, dict[str, str]]) -> tuple[str, ...]:
    fields = (
        *(("resource", "role"), ("connection", "connection"), ("device", "disk"), ("peer-device", "peer-disk")),
        *(("peer-device", "replication"), ("peer-device", "out-of-sync")),
    )
    return tuple(facts.get(kind, {}).get(field, "none") for kind, field in fields)


def wait_tidy(cluster: Cluster, *, within: float = 90.0) -> None:
    """Return when there is nothing ``untidy`` any more: what was interrupted is settled by itself."""
    last: list[str] = []

    def tidy() -> bool:
        last[:] = untidy(cluster)
        return not last

    try:
        cluster[1].wait_until(tidy, within=within, what="all is tidy")
    except LabFailed as error:
        raise LabFailed(f"{error}: {'; '.join(last)}") from None
