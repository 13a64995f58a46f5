"""mcvirtd that kills itself in the middle of a change: see join_crash_points, which this is with other moments.

"after append" on the leader: stored there, and nowhere else. "before give": stored where it must be, and not answered.
"""

from __future__ import annotations

import sys

from mcvirtd.state.log import StateLog
from mcvirtd.state.turns import Turns
from tests.node.join_crash_points import crash_points

crash_points._ACTS = ((StateLog, ("append",)), (Turns, ("give",)))


if __name__ == "__main__":
    sys.exit(crash_points.main())
