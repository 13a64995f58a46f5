"""mcvirtd that kills itself in the steps of a migration: see crash_points, which this is with other moments.

Besides the steps of both sides these are the moments in which libvirt tells that something has happened to a domain:
among them those when the guest stands still on the one node, and does not run on the other yet.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_DIRECTORY = Path(sys.argv[sys.argv.index("--settings") + 1]).parent
os.environ["CRASH_PLAN"] = str(_DIRECTORY / "plan")
os.environ["CRASH_LOG"] = str(_DIRECTORY / "moments")

from mcvirtd.hypervisor.libvirt_moving import MovingHypervisor  # noqa: E402
from mcvirtd.migration.arrivals import Arrivals  # noqa: E402
from mcvirtd.migration.settling import Settlement  # noqa: E402
from mcvirtd.migration.volumes import Copies  # noqa: E402
from tests.node import crash_points  # noqa: E402

crash_points._ACTS = (
    (MovingHypervisor, ("send", "_touch")),
    (Arrivals, ("expect", "make_volume", "carry", "finish")),
    (Settlement, ("settle", "commit", "_finish")),
    (Copies, ("drop",)),
)


if __name__ == "__main__":
    sys.exit(crash_points.main())
