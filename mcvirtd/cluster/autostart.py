"""Starts virtual machines by themselves: when mcvirtd starts, and every so often."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

from mcvirt.errors import McvirtError
from mcvirt.types.vm import AutoStart
from mcvirtd.cluster.node_service import autostart_interval
from mcvirtd.state.records import SettingsRecord
from mcvirtd.state.store import Change, Store

log = logging.getLogger(__name__)

_AT_START = frozenset({AutoStart.ON_BOOT, AutoStart.ON_POLL})
_AT_POLL = frozenset({AutoStart.ON_POLL})
# How long one wait for libvirt lasts, and so how long stop() may take.
_PATIENCE = 1.0
_ASK_AGAIN = 1.0
_AGAIN_AFTER = (5.0, 15.0, 60.0)


class _Attempt(NamedTuple):
    """The start of a machine: the *task* that goes on with it, None if it failed at once, and when it was begun."""

    task: str | None
    at: float


class Autostart:
    """A thread of its own. One machine that can't be started never keeps another from it.

    *vms* gives the stopped virtual machines that are registered on this node, by name. *start* starts one, or begins
    to. *libvirt_ready* returns True as soon as libvirt can be used, False if it can't within the seconds given.

    Until *sure* says that this node knows what has become of the cluster, only machines are started that are *bound*
    to it: what nobody else could run can't have been taken over while this node was off. The others are started then.
    So is what is *unsettled*, or *coming* here as mcvirtd starts, as soon as it is settled, and registered here.

    What could not be started with the node is tried again some times, for much else may just be coming up: *start* may
    return the id of the task that goes on with it, of which *failed* says whether it has, None meaning not yet.
    """

    def __init__(
        self,
        *,
        store: Store,
        vms: Callable[[], Mapping[str, AutoStart]],
        start: Callable[[str], str | None],
        libvirt_ready: Callable[[float], bool],
        sure: Callable[[], bool] = lambda: True,
        bound: Callable[[str], bool] = lambda name: True,  # noqa: ARG005
        unsettled: Callable[[str], bool] = lambda name: False,  # noqa: ARG005
        coming: Callable[[], frozenset[str]] = frozenset,
        failed: Callable[[str], bool | None] = lambda task: False,  # noqa: ARG005
    ) -> None:
        self._store = store
        self._vms = vms
        self._start_vm = start
        self._libvirt_ready = libvirt_ready
        self._sure = sure
        self._bound = bound
        self._unsettled = unsettled
        self._coming = coming
        self._failed = failed
        self._late: frozenset[str] = frozenset()
        self._held: frozenset[str] = frozenset()
        self._begun: dict[str, _Attempt] = {}
        self._tries: dict[str, int] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="autostart", daemon=True)
        store.subscribe(self._settings_changed)

    def start(self) -> None:
        """Begin: with ON_BOOT and ON_POLL as soon as libvirt can be used, then with ON_POLL at each interval."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no further start; returns once the one under way is over, or after ten seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(10)

    def warnings(self) -> tuple[str, ...]:
        """What operators must know."""
        found = []
        if self._held:
            found.append(
                "it was off, and has not heard from the cluster since what has become of its virtual machines, so "
                f"these are not started by themselves: {', '.join(sorted(self._held))}."
            )
        if self._late:
            found.append(
                "those of these virtual machines that start by themselves are started once it is settled where they "
                f"are, and their disks here have got what they missed: {', '.join(sorted(self._late))}."
            )
        return tuple(found)

    def _settings_changed(self, change: Change) -> None:
        if (SettingsRecord.kind, "cluster") in change.puts:
            with self._changed:
                self._changed.notify_all()

    def _run(self) -> None:
        kinds = _AT_START
        with suppress(McvirtError):  # the state file can't be read, which others say
            self._late = self._coming()
        while self._wait_for_libvirt():
            self._start_all(kinds)
            kinds = _AT_POLL
            if not self._wait_for_interval(time.monotonic()):
                return

    def _wait_for_libvirt(self) -> bool:
        """False if it is the end of mcvirtd that came."""
        while not self._stopping:
            try:
                if self._libvirt_ready(_PATIENCE):
                    return not self._stopping
            except Exception:
                log.exception("libvirt could not be asked for")
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, _PATIENCE)
        return False

    def _wait_for_interval(self, last: float) -> bool:
        """Wait until the interval, as it is set at the time, has passed since *last*; False at the end of mcvirtd."""
        while not self._stopping:
            if self._held and self._is_sure():
                held, self._held = self._held, frozenset()
                if not self._start_all(_AT_START, held):
                    self._held = held
            settled = self._settled()
            if settled:
                self._late -= settled
                if not self._start_all(_AT_START, settled):
                    self._late |= settled
            self._follow_up()
            with self._changed:
                interval = autostart_interval(self._store)
                left = last + interval - time.monotonic()
                if interval > 0 and left <= 0:
                    return not self._stopping
                patience = left if interval > 0 else None
                if self._held or self._late or self._begun:
                    patience = _ASK_AGAIN if patience is None else min(patience, _ASK_AGAIN)
                if not self._stopping:
                    self._changed.wait(patience)
        return False

    def _is_sure(self) -> bool:
        try:
            return self._sure()
        except Exception:
            log.exception("it could not be found out whether this node has caught up")
            return False

    def _settled(self) -> frozenset[str]:
        """Those of the machines that had to wait for it which are settled now."""
        try:
            return frozenset(name for name in self._late if not self._unsettled(name))
        except Exception:
            log.exception("it could not be found out which machines are settled")
            return frozenset()

    def _start_all(self, kinds: frozenset[AutoStart], only: frozenset[str] | None = None) -> bool:
        """Start the machines of *kinds*; of these *only*, where they are named. False if they can't be listed."""
        sure = self._is_sure()  # before the list: becoming sure may change which machines are this node's
        try:
            wanted = sorted(
                name for name, autostart in self._vms().items() if autostart in kinds and (only is None or name in only)
            )
            held = () if sure else [name for name in wanted if not self._bound(name)]
            late = [name for name in wanted if name not in held and self._unsettled(name)]
        except Exception:
            log.exception("the virtual machines to start could not be listed")
            return False
        if held:
            log.warning("not started until this node has heard from the cluster: %s", ", ".join(held))
            self._held = self._held.union(held)
        if late:
            log.warning("not started until it is settled where they are, or their disks: %s", ", ".join(late))
            self._late = self._late.union(late)
        for name in wanted:
            if self._stopping:
                break
            self._begun.pop(name, None)
            if name in held or name in late:
                continue
            task: str | None = None
            failed = True
            try:
                task = self._start_vm(name)
                failed = False
                log.info("virtual machine %s is started by itself", name)
            except McvirtError as error:
                log.warning("virtual machine %s could not be started by itself: %s", name, error)
            except Exception:
                log.exception("virtual machine %s could not be started by itself", name)
            if kinds is _AT_START and (failed or task is not None):
                self._begun[name] = _Attempt(task, time.monotonic())
                self._tries[name] = self._tries.get(name, 0) + 1
        return True

    def _follow_up(self) -> None:
        """Start those again that could not be started, some time after they were, if nobody else has meanwhile."""
        if not self._begun:
            return
        try:
            stopped, ready = self._vms(), self._libvirt_ready(0.0)
        except Exception:
            log.exception("the virtual machines that were started could not be listed")
            return
        again = set()
        for name, attempt in list(self._begun.items()):
            try:
                failed = attempt.task is None or self._failed(attempt.task)
            except Exception:
                log.exception("it could not be found out whether machine %s was started", name)
                failed = False
            if failed is None:
                continue
            tries = self._tries[name]
            if not failed or name not in stopped or tries > len(_AGAIN_AFTER):
                del self._begun[name], self._tries[name]
            elif ready and time.monotonic() - attempt.at >= _AGAIN_AFTER[tries - 1]:
                again.add(name)
        if again:
            self._start_all(_AT_START, frozenset(again))
