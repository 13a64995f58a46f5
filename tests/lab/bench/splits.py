"""How soon a split brain is shown, on both nodes, after the kernel's own message of it."""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor

from tests.bench.rows import Row
from tests.lab.bench.by_hand import MEMORY
from tests.lab.bench.hands import Agents
from tests.lab.bench.measured import MIB, THIN, Say
from tests.lab.moved import Guest

SPLITS = 10
BAR = 2.0


def shown(agents: Agents, say: Say) -> list[Row]:
    """Splits by writes on both sides, each resolved with DRBD's own commands."""
    agents[1].ask("create", name="web1", size=16 * MIB, backend=THIN, memory=MEMORY * MIB)
    guest = Guest(agents.cluster, "web1")
    name, (first, second) = guest.resource, agents.cluster.nodes
    took: list[float] = []
    for number in range(SPLITS):
        first.succeed(f"drbdadm disconnect {name}")
        for node in (first, second):
            node.succeed(
                f"drbdadm primary --force {name} && "
                f"dd if=/dev/urandom of={guest.device} bs=64k count=3 seek={8 * number} oflag=direct status=none"
            )
            node.wait_until(f"drbdadm secondary {name}", within=10)
        with ThreadPoolExecutor(2) as pool:
            watching = [pool.submit(agents[each].seconds, "watch_split", disk=guest.disk) for each in (1, 2)]
            for node in (second, first):
                node.run(f"drbdadm connect {name}")
            found = [each.result() for each in watching]
        say(f"split {number}: shown after {', '.join(f'{seconds:.2f} s' for seconds in found)}")
        took += found
        # Not at once where a connection is just being made.
        second.wait_until(f"drbdadm disconnect {name}; drbdadm cstate {name} | grep -qx StandAlone", within=10)
        second.succeed(f"drbdadm connect --discard-my-data {name}")
        first.run(f"drbdadm connect {name}")
        for node in (first, second):
            node.wait_until(f"drbdadm dstate {name} | grep -qx UpToDate/UpToDate")
    agents[1].ask("delete", name="web1")
    about = f"until {SPLITS} of them were shown on both nodes, at most; half within {statistics.median(took):.2f}"
    return [Row(name="drbd_split_shown", ours=max(took), yardstick=BAR, unit="s", about=about)]
