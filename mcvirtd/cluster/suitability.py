"""Whether a node can join a cluster: pure checks on the facts of both sides, all of them, whatever the others say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from mcvirt.types.membership import JoinCheck, JoinerFacts, Place

CLOCK_GAP = 5.0
_SHOWN = 10


class ClusterFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The side of the cluster. *bridges* maps network to its interface, *backends* are there and not on the node.

    *here* is the member that takes the node in; *kinds* are the kinds of records that a member must understand. *drbd*:
    hard drives are replicated.
    """

    here: str
    members: Mapping[str, str | None]
    ids: Mapping[str, str]
    version: str
    kinds: Sequence[str]
    bridges: Mapping[str, str]
    backends: Sequence[str] = ()
    drbd: bool = False


def checks(cluster: ClusterFacts, node: JoinerFacts, *, place: Place, clock_gap: float) -> tuple[JoinCheck, ...]:
    """What was looked at, and found. *place* is where the node was reached, *clock_gap* the seconds it is ahead."""
    return tuple(
        JoinCheck(name=name, ok=not fault, text=fault or fine)
        for name, fault, fine in (
            ("Name", _name(cluster, node), f"'{node.name}' is not taken."),
            ("Address", _address(cluster, node, place), f"{node.address} is not taken."),
            ("Version", _version(cluster, node), f"{node.version} works together with {cluster.version}."),
            ("Clock", _clock(clock_gap), "both clocks agree."),
            ("Cluster", _alone(node), "it is in no cluster with others."),
            ("Virtual machines", _machines(node), "it has none."),
            ("Storage", _storage(node), _left_out(cluster)),
            ("Tasks", _listed("it is at work", node.tasks), "it is not at work."),
            ("Networks", _networks(cluster, node), "it has the bridges of all networks."),
            ("DRBD", _drbd(node), "it can replicate hard drives." if cluster.drbd else "it is not enabled here."),
            ("Reachability", _reachability(node), "it reaches all members."),
        )
    )


def faults(found: Sequence[JoinCheck]) -> list[str]:
    """What stands against it, a sentence each."""
    return [check.text for check in found if not check.ok]


def _name(cluster: ClusterFacts, node: JoinerFacts) -> str:
    if node.name in cluster.members:
        return f"there is a member called '{node.name}' already; every node needs a name of its own."
    twin = next((name for name, identity in cluster.ids.items() if identity == node.id), None)
    return f"its state was copied from member '{twin}': both have the ID {node.id}." if twin else ""


def _address(cluster: ClusterFacts, node: JoinerFacts, place: Place) -> str:
    here = cluster.members[cluster.here]
    if not here:
        return (
            f"node '{cluster.here}', which takes it in, has no cluster address; `mcvirt node --set-ip-address ADDRESS` "
            "there sets one."
        )
    taken = next((name for name, address in cluster.members.items() if address == node.address), None)
    if taken is not None:
        return f"member '{taken}' has its address, {node.address}, too."
    if node.address != place.address or node.port != place.port:
        return (
            f"it is at {node.address}:{node.port} now, and not at {place.address}:{place.port}, as the connect string "
            "says. Have a new one made."
        )
    return ""


def _version(cluster: ClusterFacts, node: JoinerFacts) -> str:
    lacking = sorted(set(cluster.kinds) - set(node.kinds))
    if not neighbours(cluster.version, node.version) or lacking:
        return f"it has mcvirt {node.version}, which does not work together with {cluster.version}. Upgrade the older."
    return ""


def neighbours(one: str, other: str) -> bool:
    """Whether nodes of these versions work together: the same first number, and second ones next to each other."""
    try:
        first, second = ([int(part) for part in version.split(".")[:2]] for version in (one, other))
    except ValueError:
        return one == other
    return first[:1] == second[:1] and abs(([*first, 0])[1] - ([*second, 0])[1]) <= 1


def _clock(gap: float) -> str:
    if abs(gap) <= CLOCK_GAP:
        return ""
    direction = "ahead of" if gap > 0 else "behind"
    return f"its clock is {abs(gap):.0f} s {direction} this node's; {CLOCK_GAP:.0f} s is the most. Set it by NTP."


def _alone(node: JoinerFacts) -> str:
    if node.members <= 1:
        return ""
    return f"it is in a cluster of {node.members} nodes already; `mcvirt cluster remove-node` takes it out there."


def _machines(node: JoinerFacts) -> str:
    if node.libvirt:
        return f"it can't be known whether it has virtual machines: {node.libvirt}"
    foreign = [name for name in node.domains if name not in node.machines]
    found = [
        _listed("it has virtual machines", node.machines),
        _listed("its libvirt has domains that mcvirt did not make", foreign),
    ]
    return " ".join(text for text in found if text)


def _storage(node: JoinerFacts) -> str:
    found = [
        _listed("it has hard drives", node.disks),
        _listed("it has storage backends of its own, which must be deleted there first", node.backends),
    ]
    return " ".join(text for text in found if text)


def _left_out(cluster: ClusterFacts) -> str:
    if not cluster.backends:
        return "it has none of its own."
    return f"it is left out of {', '.join(cluster.backends)}; `mcvirt storage add-node` adds it."


def _networks(cluster: ClusterFacts, node: JoinerFacts) -> str:
    missing = [
        f"network '{network}' can't be had there: {node.bridges[interface]}"
        for network, interface in sorted(cluster.bridges.items())
        if node.bridges.get(interface)
    ]
    return " ".join(missing)


def _drbd(node: JoinerFacts) -> str:
    return f"it can't replicate hard drives: {' '.join(node.drbd)}" if node.drbd else ""


def _reachability(node: JoinerFacts) -> str:
    return " ".join(f"it does not reach member '{name}': {reason}" for name, reason in sorted(node.unreached.items()))


def _listed(what: str, names: Sequence[str]) -> str:
    return f"{what}: {', '.join(_shortened(sorted(names)))}." if names else ""


def _shortened(names: Sequence[str]) -> Iterator[str]:
    yield from names[:_SHOWN]
    if len(names) > _SHOWN:
        yield f"and {len(names) - _SHOWN} more"
