"""The steps in which replicated disks are made, grown, deleted, verified and copied.

Each of them can be held, or made to fail.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.lab.cluster import Cluster
from tests.lab.trouble import reached, trouble


class Step(NamedTuple):
    """The call of a *program* with *word* on node number *node*, before it or (`late`) after it.

    A word names {disk} where it might mean what is done to another one.
    """

    node: int
    program: str
    word: str
    what: str = "wait"

    @property
    def done(self) -> Step:
        """The same, held after it."""
        return self._replace(what="late")

    def arm(self, cluster: Cluster, resource: str, what: str = "") -> None:
        """From now on it is held, or *what* is said; *resource* is the disk's."""
        word = self.word.format(disk=resource)
        trouble(cluster[self.node], self.program, word, what or self.what, more=True)

    def reached(self, cluster: Cluster, resource: str) -> None:
        """Return when it is held."""
        reached(cluster[self.node], self.program, self.word.format(disk=resource))


MAKING = (
    *(Step(node, "lvcreate", "drbd-raw") for node in (1, 2)),
    *(Step(node, "lvcreate", "drbd-meta") for node in (1, 2)),
    *(Step(node, "drbdadm", "create-md") for node in (1, 2)),
    *(Step(node, "drbdadm", "?up?mcvirt") for node in (1, 2)),
    Step(1, "drbdsetup", "new-current-uuid"),
    Step(1, "drbdsetup", "new-current-uuid", "late"),
    Step(2, "drbdsetup", "pause-sync"),
    Step(1, "drbdsetup", "pause-sync", "late"),
    Step(2, "drbdsetup", "resume-sync"),
)
GROWING = (
    *(Step(node, "lvextend", "drbd-raw") for node in (1, 2)),
    Step(2, "lvextend", "drbd-raw", "late"),
    Step(1, "drbdsetup", "?primary?"),
    Step(1, "drbdadm", "resize"),
    Step(1, "drbdadm", "resize", "late"),
    Step(1, "drbdsetup", "?secondary?"),
    Step(1, "drbdsetup", "?secondary?", "late"),
)
DELETING = (
    *(Step(node, "drbdsetup", "?down?{disk}") for node in (1, 2)),
    Step(2, "drbdsetup", "?down?{disk}", "late"),
    *(Step(node, "lvremove", "drbd-raw") for node in (1, 2)),
    Step(2, "lvremove", "drbd-raw", "late"),
    *(Step(node, "lvremove", "drbd-meta") for node in (1, 2)),
    *(Step(node, "lvremove", "drbd-meta", "late") for node in (1, 2)),
)
# Verifying, and telling the kernel to stop it.
COMPARING = Step(1, "drbdsetup", "?verify?")
STOPPING = Step(1, "drbdsetup", "--stop=8")
# Copying what differs: of two Secondaries the good one is alone for a moment, and ahead then. Or everything.
CUTTING_OFF = Step(1, "drbdadm", "disconnect?{disk}")
RENEWING = Step(1, "drbdsetup", "new-current-uuid")
CONNECTING = Step(1, "drbdadm", "[!s]connect?{disk}")
COPYING_ALL = Step(1, "drbdadm", "invalidate-remote")
