"""Moving domains with libvirt. This process is the client of both libvirtds, and tells each what to do.

So a death of this process never makes two guests of one: until the end libvirt takes the migration back, and where it
can't know any more how it ended, it leaves the guest standing, for us to decide. (When libvirtds speak with each
other without a client, the sending one lets its guest run on if the last answer was lost.)
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import libvirt

from mcvirt.errors import DomainMissing, LibvirtFailed
from mcvirtd.hypervisor.keeper import Link
from mcvirtd.hypervisor.libvirt import Hypervisor
from mcvirtd.hypervisor.moving import BRIEF_DOWNTIME, JobProgress, JobResult, Journey, Route
from mcvirtd.hypervisor.states import DomainState
from mcvirtd.hypervisor.words import state_of
from mcvirtd.hypervisor.xml.travel import guests_user

_FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
    | libvirt.VIR_MIGRATE_AUTO_CONVERGE
)


class MovingHypervisor(Hypervisor):
    """See MovingVerbs."""

    # libvirt looks at the whole machine for its capabilities. What is asked of them changes with libvirtd's settings,
    # and so not while a connection to it lasts.
    _user: tuple[weakref.ref[Link], tuple[int, int]] | None = None

    def look(self, uuid: str) -> DomainState | None:
        with self._asking(f"look at domain {uuid}") as call:
            try:
                return state_of(call.conn.lookupByUUIDString(uuid))
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
                return None

    def running_description(self, uuid: str) -> str:
        flags = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE
        with self._asking(f"describe domain {uuid}", uuid) as call:
            return str(call.conn.lookupByUUIDString(uuid).XMLDesc(flags))

    def guests_user(self) -> tuple[int, int]:
        with self._asking("tell which user QEMU runs as") as call:
            if self._user is None or self._user[0]() is not call.link:
                self._user = weakref.ref(call.link), guests_user(call.conn.getCapabilities())
            return self._user[1]

    def cannot_take(self, kind: str, machine_type: str, cpu: str) -> str:
        try:
            with self._asking("tell what guests can run with") as call:
                call.conn.getDomainCapabilities(None, "x86_64", machine_type, kind)
                if not cpu or kind != "kvm":
                    return ""
                found = call.conn.compareHypervisorCPU(None, "x86_64", machine_type, kind, cpu, 0)
        except LibvirtFailed as error:
            return f"QEMU there has no machine type {machine_type} with {kind}: {error.reason}"
        if found in (libvirt.VIR_CPU_COMPARE_IDENTICAL, libvirt.VIR_CPU_COMPARE_SUPERSET):
            return ""
        return "its processor lacks features that the guest was started with."

    def send(self, uuid: str, route: Route, journey: Journey) -> JobResult:
        flags = _FLAGS
        params: dict[str, Any] = {
            libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{route.memory}",
            libvirt.VIR_MIGRATE_PARAM_DEST_XML: journey.xml,
        }
        if journey.copied:
            flags |= libvirt.VIR_MIGRATE_NON_SHARED_DISK
            params[libvirt.VIR_MIGRATE_PARAM_DISKS_URI] = f"unix://{route.disks}"
            params[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = list(journey.copied)
        if journey.checked:
            flags |= libvirt.VIR_MIGRATE_UNSAFE
        if journey.bandwidth is not None:
            params[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = journey.bandwidth
        with self._domain(uuid, "migrate") as domain:
            # No keep-alive: when the other node falls silent in the last moment, we decide what follows.
            there = libvirt.open(f"qemu+unix:///system?socket={route.libvirt}")
            try:
                with _brief_downtime(domain, journey):
                    return _result(domain.migrate3(there, params, flags))
            finally:
                with suppress(libvirt.libvirtError):
                    there.close()

    def job(self, uuid: str) -> JobProgress | None:
        facts = self._job_facts(uuid)
        if facts.get("type") not in (libvirt.VIR_DOMAIN_JOB_BOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED):
            return None
        return JobProgress(
            total=int(facts.get("data_total", 0)),
            remaining=int(facts.get("data_remaining", 0)),
            round_=int(facts.get("memory_iteration", 0)),
        )

    def is_busy(self, uuid: str) -> bool:
        # A job that has failed or was cancelled is still one until libvirt has cleaned up after it.
        return bool(self._job_facts(uuid).get("type", libvirt.VIR_DOMAIN_JOB_NONE) != libvirt.VIR_DOMAIN_JOB_NONE)

    def _job_facts(self, uuid: str) -> dict[str, Any]:
        try:
            with self._asking(f"measure the migration of domain {uuid}", uuid) as call:
                facts: dict[str, Any] = call.conn.lookupByUUIDString(uuid).jobStats()
        except (LibvirtFailed, DomainMissing):
            return {}
        return facts

    def set_max_downtime(self, uuid: str, milliseconds: int) -> None:
        with self._asking(f"limit the downtime of domain {uuid}", uuid) as call:
            call.conn.lookupByUUIDString(uuid).migrateSetMaxDowntime(milliseconds)

    def abort_job(self, uuid: str) -> None:
        try:
            with self._asking(f"stop the migration of domain {uuid}", uuid) as call:
                call.conn.lookupByUUIDString(uuid).abortJob()
        except (LibvirtFailed, DomainMissing):
            return  # there is none, or it is past stopping: `send` tells


@contextmanager
def _brief_downtime(domain: Any, journey: Journey) -> Iterator[None]:
    """In the block QEMU may let the guest stand still for BRIEF_DOWNTIME, unless the journey says otherwise.

    If the guest stays, what an operator has set for it holds again.
    """
    if journey.max_downtime is not None:
        yield
        return
    before = domain.migrateGetMaxDowntime()
    domain.migrateSetMaxDowntime(BRIEF_DOWNTIME)
    try:
        yield
    except libvirt.libvirtError:
        with suppress(libvirt.libvirtError):
            domain.migrateSetMaxDowntime(before)
        raise


def _result(domain: Any) -> JobResult:
    try:
        facts = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
    except libvirt.libvirtError:
        facts = {}
    downtime, size = facts.get("downtime"), facts.get("data_processed") or facts.get("memory_processed")
    return JobResult(downtime=None if downtime is None else int(downtime), size=None if size is None else int(size))
