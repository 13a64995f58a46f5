"""mcvirtd that kills itself in the steps of joining: see crash_points, which this is with other moments.

The plan and the log are beside the settings file, so that each node of a cluster has its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_DIRECTORY = Path(sys.argv[sys.argv.index("--settings") + 1]).parent
os.environ["CRASH_PLAN"] = str(_DIRECTORY / "plan")
os.environ["CRASH_LOG"] = str(_DIRECTORY / "moments")

from mcvirtd.cluster.joining import Joining  # noqa: E402
from mcvirtd.cluster.keys import Keys  # noqa: E402
from mcvirtd.cluster.membership import Membership  # noqa: E402
from mcvirtd.cluster.newcomer import Newcomer  # noqa: E402
from mcvirtd.state.log import StateLog  # noqa: E402
from tests.node import crash_points  # noqa: E402

crash_points._ACTS = (
    (Newcomer, ("begin", "take_over", "rejoin")),
    (Keys, ("stage_key", "stage_authority", "settle")),
    (Membership, ("use_up", "take_over", "settle_joining")),
    (StateLog, ("become", "append")),
    (Joining, ("_record", "_package", "_expect_in")),
)


if __name__ == "__main__":
    sys.exit(crash_points.main())
