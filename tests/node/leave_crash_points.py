"""mcvirtd that kills itself in the steps of leaving: see join_crash_points, which this is with other moments."""

from __future__ import annotations

import sys

from mcvirtd.cluster.keys import Keys
from mcvirtd.cluster.leaving import Leaving
from mcvirtd.cluster.membership import Membership
from mcvirtd.cluster.newcomer import Leaver
from mcvirtd.state.log import StateLog
from mcvirtd.state.replication import Replicator
from tests.node.join_crash_points import crash_points

crash_points._ACTS = (
    (Leaving, ("_forget",)),
    (Leaver, ("part", "parted")),
    (Keys, ("stage_own", "settle")),
    (Membership, ("announce_leaving", "reset")),
    (StateLog, ("become", "append")),
    (Replicator, ("promote",)),
)


if __name__ == "__main__":
    sys.exit(crash_points.main())
