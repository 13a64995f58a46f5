"""Starts virtual machines by themselves: when mcvirtd starts, and every so often."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

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


class Autostart:
    """A thread of its own. One machine that can't be started never keeps another from it.

    *vms* gives the stopped virtual machines that are registered on this node, by name. *start* starts one, or begins
    to. *libvirt_ready* returns True as soon as libvirt can be used, False if it can't within the seconds given.
    """

    def __init__(
        self,
        *,
        store: Store,
        vms: Callable[[], Mapping[str, AutoStart]],
        start: Callable[[str], object],
        libvirt_ready: Callable[[float], bool],
    ) -> None:
        self._store = store
        self._vms = vms
        self._start_vm = start
        self._libvirt_ready = libvirt_ready
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

    def _settings_changed(self, change: Change) -> None:
        if (SettingsRecord.kind, "cluster") in change.puts:
            with self._changed:
                self._changed.notify_all()

    def _run(self) -> None:
        kinds = _AT_START
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
        with self._changed:
            while not self._stopping:
                interval = autostart_interval(self._store)
                left = last + interval - time.monotonic()
                if interval > 0 and left <= 0:
                    return True
                self._changed.wait(left if interval > 0 else None)
        return False

    def _start_all(self, kinds: frozenset[AutoStart]) -> None:
        try:
            wanted = sorted(name for name, autostart in self._vms().items() if autostart in kinds)
        except Exception:
            log.exception("the virtual machines to start could not be listed")
            return
        for name in wanted:
            if self._stopping:
                return
            try:
                self._start_vm(name)
                log.info("virtual machine %s is started by itself", name)
            except McvirtError as error:
                log.warning("virtual machine %s could not be started by itself: %s", name, error)
            except Exception:
                log.exception("virtual machine %s could not be started by itself", name)
