"""The mark that two sides differ follows what the kernel says, also where nobody asked mcvirt to compare them.

A verification begun by hand, or one that mcvirtd did not live to see the end of, leaves blocks that the kernel knows to
differ; a resync that began by itself makes them equal. Both nodes see it, and either of them records it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from mcvirt.errors import McvirtError
from mcvirt.types.drbd import ResourceState
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.reader import Reader
from mcvirtd.drbd.status import Event
from mcvirtd.drbd.verifications import Verifications
from mcvirtd.state.records import DiskRecord, VerificationRecord
from mcvirtd.state.store import Store

log = logging.getLogger(__name__)


class Watch:
    """*retry* is for a timer: it records what could not be recorded when it was seen."""

    def __init__(self, *, store: Store, reader: Reader, verifications: Verifications) -> None:
        self._store = store
        self._verifications = verifications
        self._copying: set[str] = set()
        self._lock = threading.Lock()
        self._due: dict[str, int] = {}
        self._wanted = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._record_on, name="drbd-marks", daemon=True)
        self._unsubscribe: Callable[[], None] = reader.subscribe(self._on_event)

    def start(self) -> None:
        """Begin to record."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._unsubscribe()
        self._stopped = True
        self._wanted.set()

    def retry(self) -> None:
        """Record what is due."""
        if self._due:
            self._wanted.set()

    def _on_event(self, event: Event, state: ResourceState | None) -> None:
        if state is None:
            self._copying.discard(event.resource)
            return
        if state.copying:
            self._copying.add(event.resource)
            return
        if not state.both_good or state.replication != "Established":
            return
        was_copied = event.resource in self._copying
        self._copying.discard(event.resource)
        if state.out_of_sync or was_copied:
            with self._lock:
                self._due[event.resource] = state.out_of_sync
            self._wanted.set()

    def _record_on(self) -> None:
        while not self._stopped:
            self._wanted.wait()
            self._wanted.clear()
            with self._lock:
                due, self._due = self._due, {}
            for resource, out_of_sync in due.items():
                try:
                    self._record(resource, out_of_sync)
                except McvirtError as error:
                    log.warning(
                        "it can't be recorded now that %s differs in %d bytes: %s", resource, out_of_sync, error
                    )
                    with self._lock:
                        self._due.setdefault(resource, out_of_sync)
                except Exception:
                    log.exception("what the kernel says of %s could not be recorded", resource)

    def _record(self, resource: str, out_of_sync: int) -> None:
        disks = self._store.all(DiskRecord).values()
        disk = next(
            (each.id for each in disks if each.replica is not None and resource_name(each.id) == resource), None
        )
        if disk is None:
            return
        record = self._store.get(VerificationRecord, disk) or VerificationRecord(disk=disk)
        if (record.failed, record.out_of_sync) == (bool(out_of_sync), out_of_sync):
            return
        if out_of_sync:
            log.error("DRBD says that the two sides of hard drive %s differ in %d bytes", disk, out_of_sync)
        else:
            log.info("the two sides of hard drive %s are equal again", disk)
        self._verifications.mark(disk, out_of_sync)
