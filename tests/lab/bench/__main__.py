"""`make bench-lab`: the promises about replicated disks and their machines, measured on two emulated nodes.

Each ratio is of one run, in which what is measured and its yardstick take turns. What is counted is in
docs/design/0013-lab.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Before the lab looks: 16 GiB are to fit into a pool that is not promised more than it has.
os.environ.setdefault("MCVIRT_LAB_DISK", "64G")

from tests.bench import rows
from tests.bench.rows import Row
from tests.lab.bench import measured, moving, splits
from tests.lab.bench.hands import Agents
from tests.lab.cache import CannotRun
from tests.lab.cluster import Cluster
from tests.lab.lab import Lab

PARTS: dict[str, Callable[[Agents, measured.Say], list[Row]]] = {
    "creation": measured.creation,
    "verification": measured.verification,
    "resync": measured.resync,
    "offline": moving.offline,
    "online": moving.online,
    "splits": splits.shown,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--no-fail", action="store_true", help="end with status 0 although a bar is missed")
    parser.add_argument("--output", type=Path, default=Path("build/bench-lab.json"), metavar="FILE")
    arguments = parser.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"bench: {text} ({time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f})", file=sys.stderr)

    found: list[Row] = []
    failed: list[str] = []
    try:
        with Lab(2) as lab:
            cluster = Cluster.join(lab)
            say("two nodes are joined")
            with Agents(cluster) as agents:
                measured.prepare(agents)
                for part in arguments.only:
                    try:
                        found += PARTS[part](agents, say)
                    except Exception as error:  # the other parts are worth having all the same
                        failed.append(part)
                        say(f"{part} failed: {type(error).__name__}: {error}")
                    else:
                        say(f"{part} is measured")
    except CannotRun as reason:
        print(f"bench: {reason}", file=sys.stderr)
        return 1
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_bytes(rows.as_json(found))
    print(rows.table(found))
    missed = [row.name for row in found if row.missed]
    for word, names in (("missed", missed), ("failed", failed)):
        if names:
            print(f"{word}: {', '.join(names)}", file=sys.stderr)
    return 1 if failed or (missed and not arguments.no_fail) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
