"""Sending a running guest: libvirt at work in one thread, and this one that watches it, shows how far it is, ends it
when that is wanted, and decides when the other node falls silent in the last moment."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

import msgspec

from mcvirt.errors import DeadlinePassed, Failed, LibvirtFailed, McvirtError, NodeUnreachable, TaskCancelled
from mcvirt.types.arrival import Whereabouts
from mcvirtd.hypervisor.moving import BRIEF_DOWNTIME, USUAL_DOWNTIME, JobProgress, JobResult, Journey, MovingVerbs
from mcvirtd.migration.disks import Ask
from mcvirtd.migration.settling import ABANDON_WITHIN
from mcvirtd.migration.ticket import Ticket
from mcvirtd.migration.tunnel import Tunnel
from mcvirtd.tasks.task import Progress, current_task, step

log = logging.getLogger(__name__)
_LOOK_EVERY = 0.2
# Each time libvirt asks QEMU, which has other things to do.
_MEASURE_EVERY = 1.0
# A guest that is at rest is through after one or two rounds; from the next on it is allowed to stand still for longer.
_LONGER_FROM_ROUND = 3
# How long libvirt may take to end a migration before the connections that it needs are taken away.
_ENDS_WITHIN = 10.0


class Sending:
    """One guest on its way. *reachable* says whether the other node answers now, *member* whether it is one at all,
    and *broken* why the guest must not go there any more, in a sentence; '' while it may."""

    def __init__(
        self,
        ticket: Ticket,
        *,
        hypervisor: MovingVerbs,
        tunnel: Tunnel,
        ask: Ask,
        reachable: Callable[[str], bool],
        member: Callable[[str], bool],
        deadline: int | None,
        broken: Callable[[], str] = lambda: "",
    ) -> None:
        self._ticket = ticket
        self._hypervisor = hypervisor
        self._tunnel = tunnel
        self._ask = ask
        self._reachable = reachable
        self._member = member
        self._deadline = deadline
        self._broken = broken
        self._over = threading.Event()
        self._result: JobResult | None = None
        self._failure: McvirtError | None = None
        self._reason: McvirtError | None = None  # why we ended it
        self._since = 0.0  # when
        self._limit = 0  # the downtime that was asked for last, in milliseconds
        self._measured = -math.inf

    def run(self, journey: Journey, size: int) -> JobResult:
        """Send the guest, about *size* bytes. Raises what kept it from arriving, as far as is known."""
        worker = threading.Thread(target=self._send, args=(journey,), name=f"send-{self._ticket.name}", daemon=True)
        began = time.monotonic()
        self._limit = 0 if journey.max_downtime is not None else BRIEF_DOWNTIME
        with step(f"Sending memory and disks to node {self._ticket.target}", total=size, unit="B") as progress:
            worker.start()
            while not self._over.wait(_LOOK_EVERY):
                self._watch(progress, journey, size, time.monotonic() - began)
            if self._result is None:
                raise self._reason or self._failure or Failed(text="The migration failed.")
        return self._result

    def _send(self, journey: Journey) -> None:
        try:
            self._result = self._hypervisor.send(self._ticket.uuid, self._tunnel.route, journey)
        except McvirtError as error:
            self._failure = error
        except Exception as error:
            log.exception("sending %s failed", self._ticket.name)
            self._failure = LibvirtFailed(action=f"migrate {self._ticket.name}", reason=f"{type(error).__name__}.")
        finally:
            self._over.set()

    def _watch(self, progress: Progress, journey: Journey, size: int, seconds: float) -> None:
        target = self._ticket.target
        if not self._reachable(target):
            self._end(NodeUnreachable(node=target, reason="it fell silent."))
            self._tunnel.cut()
        elif why := self._broken():
            self._end(Failed(text=why[:1].upper() + why[1:]))
        try:
            # First of all: until this is decided, libvirt waits for an answer that does not come.
            if self._tunnel.lost.is_set():
                self._decide()
            self._show(progress, journey, size)
            if self._deadline is not None and seconds > self._deadline:
                self._end(
                    DeadlinePassed(
                        what=f"The migration of '{self._ticket.name}'",
                        seconds=self._deadline,
                        why="its guest may change its memory faster than it can be sent. More --max-downtime, or more "
                        "time, may help.",
                    )
                )
        except TaskCancelled as cancelled:
            self._end(cancelled)
        except McvirtError as error:
            log.info("the migration of %s can't be watched now: %s", self._ticket.name, error)
        if self._reason is not None:
            try:
                self._press()
            except McvirtError as error:
                log.info("the migration of %s can't be ended now: %s", self._ticket.name, error)

    def _show(self, progress: Progress, journey: Journey, size: int) -> None:
        current_task().check()
        if not self._tunnel.begun:
            # libvirt still prepares, which may take long, and there is no job to measure.
            self._measured = time.monotonic()
            return
        now, waits = time.monotonic(), not self._limit
        if now - self._measured < _MEASURE_EVERY and not waits:
            return
        job, self._measured = self._hypervisor.job(self._ticket.uuid), now
        if job is None:
            return
        limit = self._wanted_limit(journey, job)
        if limit != self._limit:
            self._hypervisor.set_max_downtime(self._ticket.uuid, limit)
            self._limit = limit
        progress.at(max(0, size - job.remaining) if job.total else 0)

    def _wanted_limit(self, journey: Journey, job: JobProgress) -> int:
        """What is asked for; else as little as is enough for this guest, and never more than QEMU itself would take."""
        if journey.max_downtime is not None:
            return journey.max_downtime
        longer = 2 if job.round_ >= _LONGER_FROM_ROUND else 1
        return min(USUAL_DOWNTIME, longer * self._limit)

    def _end(self, reason: McvirtError) -> None:
        """From now on it is to end, for the first *reason* there is."""
        if self._reason is None:
            self._reason, self._since = reason, time.monotonic()

    def _press(self) -> None:
        """Have libvirt end it, as long as the guest runs here.

        Once is not enough: before there is a job, libvirt has nothing to abort, and says nothing of it either.
        """
        state = self._hypervisor.look(self._ticket.uuid)
        if state is None or not state.running:
            return
        self._hypervisor.abort_job(self._ticket.uuid)
        if time.monotonic() - self._since > _ENDS_WITHIN:
            self._tunnel.cut()

    def _decide(self) -> None:
        """The other end of libvirt's channel is gone. Does the guest run there by now?

        As long as it runs here it does not, and libvirt may end the migration. Nor does it, once it stands still, where
        nobody has told libvirt there to let it run; what had not left this node by now does not get there. Else only
        the other node can say; until it does, the guest stays as it is, wherever that is. A node that was removed from
        the cluster meanwhile has nothing: that needs an operator's word that it is off.
        """
        state = self._hypervisor.look(self._ticket.uuid)
        if state is None or state.running or not self._member(self._ticket.target):
            self._tunnel.release()
            return
        if not self._tunnel.asked_to_run:
            self._end(Failed(text=f"The connection to libvirt on node '{self._ticket.target}' broke."))
            self._tunnel.release()
            self._hypervisor.abort_job(self._ticket.uuid)
            return
        there = msgspec.json.decode(
            self._ask(self._ticket.target, "whereabouts", uuid=self._ticket.uuid), type=Whereabouts
        )
        if there.running:
            self._hypervisor.destroy(self._ticket.uuid)
        elif there.active:
            self._ask(
                self._ticket.target,
                "abandon",
                within=ABANDON_WITHIN,
                traveller=msgspec.to_builtins(self._ticket.traveller),
            )
        self._tunnel.release()
