"""All that sees to it that both sides of replicated hard drives are equal, put together."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mcvirt.errors import McvirtError
from mcvirtd.drbd.local_legs import Legs
from mcvirtd.drbd.reader import Reader
from mcvirtd.drbd.resyncing import Resync
from mcvirtd.drbd.verification_service import Errands, VerificationService
from mcvirtd.drbd.verifications import Verifications
from mcvirtd.drbd.verifying import Verifier
from mcvirtd.drbd.watch import Watch
from mcvirtd.host import drbd
from mcvirtd.state.records import DiskRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.transaction import Journal

log = logging.getLogger(__name__)
LegsOn = Callable[[str], Legs]


class Soundness:
    """*service* answers VerificationApi. *begin_due* begins the task that does what is due by the schedule."""

    def __init__(
        self, *, store: Store, journal: Journal, locks: Locks, node: str, reader: Reader, errands: Errands, legs: LegsOn
    ) -> None:
        verifications = Verifications(store, journal, node)
        resync = Resync(kernel=drbd, reader=reader, verifications=verifications, journal=journal, locks=locks)
        self._watch = Watch(store=store, reader=reader, verifications=verifications)
        self.begin_due: Callable[[], object] = _nothing
        self.service = VerificationService(
            store=store,
            node=node,
            reader=reader,
            verifier=Verifier(
                kernel=drbd,
                reader=reader,
                verifications=verifications,
                journal=journal,
                locks=locks,
                read_there=lambda disk: _read_there(legs, node, disk),
            ),
            verifications=verifications,
            resync=resync,
            errands=errands,
        )

    def level(self, disk: DiskRecord) -> None:
        """Make both sides equal where the kernels know them not to be; Conflict if they are."""
        self.service.level(disk)

    def start(self) -> None:
        """Begin to watch."""
        self._watch.start()

    def stop(self) -> None:
        """End."""
        self._watch.stop()

    def tick(self) -> None:
        """For a timer: begin what is due, unless it goes on already."""
        self._watch.retry()
        if not self.service.busy and self.service.due():
            log.info("verifications are due by the schedule")
            self.begin_due()


def _read_there(legs: LegsOn, node: str, disk: DiskRecord) -> int | None:
    try:
        states = [legs(other).state(disk.id) for other in disk.nodes if other != node]
    except McvirtError as error:
        log.debug("what the other side of %s has read is not known: %s", disk.id, error)
        return None
    return next((state.read for state in states if state is not None), None)


def _nothing() -> None:
    """Where nothing can be begun."""
