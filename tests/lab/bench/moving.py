"""Migrations beside the same by hand: of a guest that writes on a replicated disk, and of a stopped machine."""

from __future__ import annotations

import time

from tests.bench.rows import Row
from tests.lab.bench import by_hand
from tests.lab.bench.by_hand import MEMORY
from tests.lab.bench.hands import Agents
from tests.lab.bench.measured import MIB, THIN, Say, row
from tests.lab.moved import Events, Guest

MIGRATIONS = 50
WITHIN = 900.0
"""Seconds: a machine that has other things to do migrates less often."""
PAIRS = 5
OFFLINE = 5
PLAIN, ENCRYPTED = "by hand", "by hand, encrypted"


def _guest(agents: Agents) -> Guest:
    agents[1].ask("create", name="web1", size=16 * MIB, backend=THIN, memory=2 * MEMORY * MIB)
    return Guest(agents.cluster, "web1")


def offline(agents: Agents, say: Say) -> list[Row]:
    """A stopped machine, there and back, beside roles switched and the domain defined and undefined."""
    cluster = agents.cluster
    guest = _guest(agents)
    took: dict[str, list[float]] = {"ours": [], "by hand": []}
    for number in range(OFFLINE):
        for here, there in ((1, 2), (2, 1)):
            measured = agents[here].ask("migrate", name="web1", node=f"node{there}", online=False)
            took["ours"].append(measured["seconds"])
            say(f"offline {number}: {measured['seconds']:.2f} s {measured['steps']}")
        with guest.in_nobodys_care():
            cluster[1].succeed(f"drbdadm primary {guest.resource}")
            for here in (1, 2):
                seconds = agents[here].seconds("offline_by_hand", name="web1", resource=guest.resource)
                took["by hand"].append(seconds)
                say(f"offline {number}: {seconds:.2f} s by hand")
            cluster[1].succeed(f"drbdadm secondary {guest.resource}")
    agents[1].ask("delete", name="web1")
    return [row("drbd_offline", took["ours"][2:], took["by hand"][2:], "a stopped machine to the other node")]


def online(agents: Agents, say: Say) -> list[Row]:
    """A guest that runs, many times, and nothing that it wrote is lost; some times by hand in between."""
    cluster = agents.cluster
    guest = _guest(agents)
    guest.install()
    cluster.lab.each(lambda node: node.succeed(by_hand.KEYS))
    cluster[1].mcvirt("start", "web1", within=120)
    events = Events(cluster)
    totals: dict[str, list[float]] = {"ours": [], PLAIN: [], ENCRYPTED: []}
    downs: dict[str, list[float]] = {"ours": [], PLAIN: [], ENCRYPTED: []}
    ticks, on, whole = guest.counts(cluster[1], boots=1), 1, 0
    begun = time.monotonic()
    for number in range(MIGRATIONS):
        if time.monotonic() - begun > WITHIN:
            say(f"this has taken too long: it ends after {number} migrations")
            break
        there = 3 - on
        measured = agents[on].ask("migrate", name="web1", node=f"node{there}", online=True)
        on = there
        totals["ours"].append(measured["seconds"])
        downs["ours"].append(float(measured["downtime"]))
        say(f"online {number}: {measured}")
        ticks = guest.counts(cluster[on], boots=1, beyond=ticks)
        whole += guest.rests() == on
        if on == 1 and number * PAIRS // MIGRATIONS != (number - 2) * PAIRS // MIGRATIONS:
            for how in (PLAIN, ENCRYPTED):
                # One at a time: libvirt gives up connections of which nothing was heard for half a minute.
                with guest.in_nobodys_care():
                    for here in (1, 2):
                        words = {"name": "web1", "resource": guest.resource, "encrypted": how == ENCRYPTED}
                        measured = agents[here].ask("online_by_hand", **words)
                        totals[how].append(measured["seconds"])
                        downs[how].append(float(measured["downtime"]))
                        say(f"online {number} {how}: {measured}")
            ticks = guest.counts(cluster[1], boots=1, beyond=ticks)
    lost = events.other_than_connected()
    say(f"events of other connections than good ones: {lost}")
    agents[on].node.mcvirt("stop", "web1")
    cluster[1].mcvirt("verify", "web1", within=240)  # raises where the two sides differ
    agents[on].ask("delete", name="web1")
    about = "migrations of a guest that writes, all it wrote there, and DRBD's connection never lost"
    good = 0 if lost else whole
    return [
        row("drbd_online", totals["ours"][2:], totals[PLAIN][2:], "a running machine to the other node"),
        row("drbd_online_tls", totals["ours"][2:], totals[ENCRYPTED][2:], "the same, beside QEMU's own encryption"),
        row("drbd_online_downtime", downs["ours"][2:], downs[PLAIN][2:], "while the guest stood still", "ms"),
        row("drbd_online_downtime_tls", downs["ours"][2:], downs[ENCRYPTED][2:], "the same, encrypted", "ms"),
        Row(name="drbd_migrations", ours=good, yardstick=MIGRATIONS, unit="", about=about),
    ]
