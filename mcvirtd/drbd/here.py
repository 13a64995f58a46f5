"""DRBD on this node: what is read, what handlers say, and the resources that are to be up.

Nothing of it is begun before DRBD is enabled for the cluster; from then on this node follows the cluster's record of
it by itself, also when it joins later. What runs is adopted and never demoted; what is down is brought up at the start.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from mcvirt.errors import CommandFailed, McvirtError
from mcvirt.types.drbd import ResourceState
from mcvirt.types.peer import DrbdOutlook
from mcvirtd.drbd.config import MOST_RATE, Common, Resource, resource_name
from mcvirtd.drbd.doorbell import Doorbell
from mcvirtd.drbd.fencing import Fenced, Fencing, Other
from mcvirtd.drbd.reader import Reader, Source
from mcvirtd.drbd.resources import DATA, METADATA, common_of, replicas_on, resource_of
from mcvirtd.drbd.spool import HandlerEvent, Spool
from mcvirtd.drbd.status import Event, Progress
from mcvirtd.host import drbd as host_drbd
from mcvirtd.host import lvm, lvm_filter
from mcvirtd.state.records import BackendRecord, DiskRecord, DrbdRecord, NodeRecord, ReplicaClaimRecord
from mcvirtd.state.store import Change, Store

log = logging.getLogger(__name__)

UP_AT_ONCE = 4
MEASURE_EVERY = 2.0
KNOWN_WITHIN = 60.0


class Verbs(Protocol):
    """What is asked of the kernel; `mcvirtd.host.drbd` does it."""

    def events(self, heard: Callable[[str], None], stop: threading.Event) -> int: ...
    def progress(self) -> Mapping[int, Progress]: ...
    def write_common(self, common: Common) -> Path | None: ...
    def write_resource(self, resource: Resource) -> None: ...
    def remove_resource(self, name: str) -> None: ...
    def resource_files(self) -> tuple[str, ...]: ...
    def has_volumes(self, name: str) -> bool: ...
    def restore_common(self) -> None: ...
    def most_rate(self) -> int | None: ...
    def unlimit_rate(self, name: str) -> None: ...
    def faults(self, address: str | None) -> list[str]: ...
    def warnings(self) -> list[str]: ...
    def up(self, name: str) -> None: ...
    def outdate(self, name: str) -> None: ...


class DrbdHere:
    """*reader* and *spool* are for everyone. *told* hears all states whenever one has changed, and whether at once.

    *in_use*: see Fencing. *rate* is what verifying and copying may take, in bytes a second.
    """

    def __init__(
        self,
        *,
        store: Store,
        node: str,
        state_directory: Path,
        run_directory: Path,
        prefix: Path,
        rate: int = MOST_RATE,
        other: Other,
        told: Callable[[Mapping[str, ResourceState], bool], None] = lambda states, at_once: None,  # noqa: ARG005
        verbs: Verbs | None = None,
        in_use: Callable[[DiskRecord], bool] = lambda disk: True,  # noqa: ARG005
    ) -> None:
        self._store = store
        self._node = node
        self._told = told
        self.verbs: Verbs = verbs if verbs is not None else _KERNEL
        self.spool = Spool(state_directory / "drbd")
        socket = run_directory / "drbd.sock"
        self.common = common_of(prefix, self.spool.directory, socket, rate)
        source: Source = self.verbs.events
        self.reader = Reader(source, split=self.spool.splits)
        self._fencing = Fencing(
            store=store, node=node, reader=self.reader, outdate=self.verbs.outdate, other=other, in_use=in_use
        )
        self._doorbell = Doorbell(socket, self._answer)
        self._lock = threading.Lock()
        self._settling = threading.Lock()
        self._begun = False
        self._goes_on = threading.Event()
        self._stopping = threading.Event()
        self._faults: dict[str, str] = {}
        self._seen: set[str] = set()
        self._settled = False
        self._rate_is_new = False
        self.spool.hear(self._on_handler)
        self.reader.subscribe(self._on_event)
        store.subscribe(self._on_change)

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Do what the cluster's record says."""
        self._follow()

    def stop(self) -> None:
        """Look and listen no more; the resources stay as they are."""
        self._stopping.set()
        self._goes_on.set()
        self._doorbell.stop()
        self.reader.stop()

    @property
    def enabled(self) -> bool:
        """Whether DRBD is enabled for the cluster."""
        record = self._store.get(DrbdRecord, "drbd")
        return record is not None and record.enabled

    def _on_change(self, change: Change) -> None:
        if any(kind == DrbdRecord.kind for kind, _ in change.puts):
            # What follows writes files and starts programs, and the change is not to wait for that.
            threading.Thread(target=self._follow, name="drbd-follow", daemon=True).start()

    def _follow(self) -> None:
        with self._lock:
            if not self.enabled or self._stopping.is_set():
                return
            if not self._begun:  # what runs has what was written before
                self._rate_is_new = self.verbs.most_rate() not in (None, self.common.most_rate)
            self._keep_common()
            if self._begun:
                return
            self._begun = True
            self.spool.prepare()
            self.spool.read()
            try:
                self._doorbell.start()
            except OSError as error:
                log.error("DRBD's handlers can't tell this daemon anything: %s", error.strerror)
            self.reader.start()
        threading.Thread(target=self.settle, args=(KNOWN_WITHIN,), name="drbd-settle", daemon=True).start()
        threading.Thread(target=self._measure_on, name="drbd-progress", daemon=True).start()

    def _keep_common(self) -> None:
        """Write what all resources have in common, unless it is there. Without it no handler would be called."""
        try:
            if (aside := self.verbs.write_common(self.common)) is not None:
                log.warning("DRBD's configuration was somebody else's, and is mcvirt's again; theirs is in %s", aside)
        except McvirtError as error:
            log.error("DRBD's configuration can't be written: %s", error)

    # --- enabling -----------------------------------------------------------------------------------------------------

    def outlook(self) -> DrbdOutlook:
        """What keeps this node from replicating, and what works and could be better."""
        record = self._store.get(NodeRecord, self._node)
        address = record.address if record is not None else None
        faults = list(self.verbs.faults(address))
        if not address:
            faults.append("it has no cluster address: `mcvirt node --set-ip-address ADDRESS` there sets one.")
        if not os.access(self.common.handler, os.X_OK):
            faults.append(f"the program {self.common.handler} is missing: install mcvirt again.")
        return DrbdOutlook(faults=tuple(faults), warnings=tuple(self.verbs.warnings()))

    def prepare(self) -> str:
        """Write what all resources have in common; where a file that was there before is now, or ""."""
        with self._lock:
            return str(self.verbs.write_common(self.common) or "")

    def unprepare(self) -> None:
        """Undo that, unless DRBD is enabled."""
        with self._lock:
            if not self.enabled:
                self.verbs.restore_common()

    # --- resources that are to be up ----------------------------------------------------------------------------------

    @property
    def faults(self) -> Mapping[str, str]:
        """The resources that could not be brought up, and why."""
        return dict(self._faults)

    def settle(self, within: float = 0.0) -> None:
        """Bring up what was down when mcvirtd was started, and deal with events that nobody heard; for a timer, too.

        What the kernel has may have to be read first: that is waited for *within* seconds.
        """
        if not self._settling.acquire(blocking=False):
            return
        try:
            self._settle(within)
        finally:
            self._settling.release()

    def _settle(self, within: float) -> None:
        if not self._begun or self._stopping.is_set():
            return
        with self._lock:
            if self.enabled:
                self._keep_common()  # an upgrade of DRBD's programs may have put its own file there
        self.spool.read()
        if not self.reader.wait_alive(within):
            return
        self.reader.measure_sizes()
        self._told(self.reader.all(), False)
        wanted = replicas_on(self._store, self._node)
        # Those that have never been up in the life of this process: it may have been away when they were stored. What
        # was, and is down now, somebody has taken down, perhaps to delete it.
        self._seen.update(self.reader.all())
        due = {name for name in wanted if name not in self._seen and not (self._settled and wanted[name].deleting)}
        down = sorted(name for name in due if self.reader.state(name) is None)
        with ThreadPoolExecutor(UP_AT_ONCE, thread_name_prefix="drbd-up") as pool:
            list(pool.map(lambda name: self._bring_up(name, wanted[name]), down))
        for name in self._split_here():
            gone = name not in wanted and self.reader.state(name) is None
            if gone or (name in wanted and len(wanted[name].nodes) < 2):  # there is no other side any more
                self.spool.joined(name)
                self.reader.joined(name)
        if self._rate_is_new:
            self._rate_is_new = False
            for name in wanted:
                self._apply_rate(name)
        self._settled = True
        self._faults = {name: why for name, why in self._faults.items() if name in due}
        self._clear_files()

    def _apply_rate(self, name: str) -> None:
        try:
            self.verbs.unlimit_rate(name)
        except McvirtError as error:
            log.warning("DRBD resource %s has the rate that it had until it is brought up again: %s", name, error)

    def _clear_files(self) -> None:
        """Remove the files of hard drives that are gone: this node may have begun to bring one up as it went.

        There is a claim or a record before there is a file, and a file that has volumes is left to somebody.
        """
        files = self.verbs.resource_files()
        known = {resource_name(disk) for kind in (ReplicaClaimRecord, DiskRecord) for disk in self._store.all(kind)}
        for name in files:
            if name not in known and self.reader.state(name) is None and not self.verbs.has_volumes(name):
                log.warning("DRBD resource %s is of no hard drive any more: its file is removed", name)
                self.verbs.remove_resource(name)

    def _bring_up(self, name: str, disk: DiskRecord) -> None:
        try:
            # First: of a hard drive that was deleted while this node was away, which has not heard of it yet, nothing
            # is to be made here any more, and the file would be left behind.
            self._activate(disk)
            if len(disk.nodes) > 1:  # the other node may have been removed; then the file is the one that was
                self.verbs.write_resource(resource_of(self._store, disk, self._node))
            self.verbs.up(name)
            self._seen.add(name)  # the kernel's event of it may come after the next time
            self._faults.pop(name, None)
            log.info("DRBD resource %s is up", name)
        except McvirtError as error:
            if self._faults.get(name) != str(error):
                log.error("DRBD resource %s can't be brought up: %s", name, error)
            self._faults[name] = str(error)

    def _activate(self, disk: DiskRecord) -> None:
        backend = self._store.get(BackendRecord, disk.backend)
        group = backend.location_on(self._node) if backend is not None else None
        for volume in (disk.volume + DATA, disk.volume + METADATA):
            if group is not None and not Path(f"/dev/{group}/{volume}").exists():
                lvm.activate(group, volume)

    # --- what the kernel says -----------------------------------------------------------------------------------------

    def _on_event(self, event: Event, state: ResourceState | None) -> None:
        self._told(self.reader.all(), True)
        self._seen.add(event.resource)
        if state is not None and (state.checking or state.copying):
            self._goes_on.set()
        # A resource that is only down, or is connecting, is split all the same.
        if state is not None and state.connected and event.resource in self._split_here():
            self.spool.joined(event.resource)

    def _split_here(self) -> frozenset[str]:
        return frozenset(self.spool.splits())

    def _measure_on(self) -> None:
        """While something goes on have the states say how far it is, which no event tells; else wait for an event."""
        while not self._stopping.is_set():
            self._goes_on.wait()
            if any(state.checking or state.copying for state in self.reader.all().values()):
                self.reader.measure(self.verbs.progress())
                self._told(self.reader.all(), False)
                self._stopping.wait(MEASURE_EVERY)
            else:
                self._goes_on.clear()
                # What began between the look and this line is not to be forgotten.
                if any(state.checking or state.copying for state in self.reader.all().values()):
                    self._goes_on.set()

    def _on_handler(self, event: HandlerEvent) -> None:
        if event.event != "split-brain":
            log.info("DRBD: %s of %s", event.event, event.resource)
            return
        state = self.reader.state(event.resource)
        if state is not None and state.connected:
            return  # it was resolved before this was read
        log.error(
            "DRBD: the two sides of %s have split. Nothing was discarded; `mcvirt drbd split-brain show` tells more",
            event.resource,
        )
        try:
            self.spool.split(event.resource)
        finally:
            # The kernel's own line about it may have been missed, and the disk be full: who looks here is to know.
            split = self.reader.split(event.resource)
        if not split:
            self.spool.joined(event.resource)

    def _answer(self, event: HandlerEvent) -> int:
        if event.event == "fence-peer":
            return self._fencing.fence(event.resource)
        if not event.kept:
            self.spool.take(event)
        self.spool.read()
        return 0

    def fence_again(self) -> None:
        """Begin to tell the other sides of what is used here without them that their data is old, if they don't know.

        For a timer, and when another node is back; it goes on in a thread of its own.
        """
        if self._begun and not self._stopping.is_set():
            threading.Thread(target=self._fencing.fence_again, name="fence", daemon=True).start()

    def outdate(self, disk: str, sender: str, *, again: bool = False) -> Fenced:
        """Mark this node's data of a hard drive as old, because *sender* goes on without it. See Fencing."""
        return self._fencing.outdate(disk, sender, again=again)


class _Kernel:
    """The verbs of `mcvirtd.host.drbd`."""

    @staticmethod
    def events(heard: Callable[[str], None], stop: threading.Event) -> int:
        return host_drbd.events(heard, stop)

    progress = staticmethod(host_drbd.progress)
    write_common = staticmethod(host_drbd.write_common)
    write_resource = staticmethod(host_drbd.write_resource)
    remove_resource = staticmethod(host_drbd.remove_resource)
    resource_files = staticmethod(host_drbd.resource_files)
    has_volumes = staticmethod(host_drbd.has_volumes)
    up = staticmethod(host_drbd.up)
    outdate = staticmethod(host_drbd.outdate)
    restore_common = staticmethod(host_drbd.restore_common)
    most_rate = staticmethod(host_drbd.most_rate)
    unlimit_rate = staticmethod(host_drbd.unlimit_rate)
    faults = staticmethod(host_drbd.faults)

    @staticmethod
    def warnings() -> list[str]:
        try:
            return [f"{fault} {lvm_filter.REMEDY}" for fault in lvm_filter.faults()]
        except CommandFailed as error:
            return [str(error)]


_KERNEL = _Kernel()
