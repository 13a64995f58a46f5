"""The side of a node that is taken into a cluster, and of one that is removed: JoinApi and MembershipApi."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import msgspec

from mcvirt import __version__
from mcvirt.api.membership import JoinApi, MembershipApi
from mcvirt.errors import BadArgument, Conflict, LeaderUnreachable, LibvirtUnreachable, NodeUnreachable, VmRunning
from mcvirt.types.membership import JoinBegun, JoinerFacts, JoinPackage, JoinQuestions, Place
from mcvirtd.auth.caller import current_caller
from mcvirtd.cluster.membership import Membership
from mcvirtd.hypervisor.states import DomainState
from mcvirtd.state import parts
from mcvirtd.state.order import Epoch, Snapshot
from mcvirtd.state.records import RECORDS, BackendRecord, ClusterRecord, DiskRecord, NodeRecord, Record, VmRecord

R = TypeVar("R", bound=Record)
_CONNECT_WITHIN = 2.0
_BEGUN_LASTS = 60.0
_COUNTED_IN_WITHIN = 20.0
_AT_ONCE = 16


class Hypervisor(Protocol):
    """What is asked about libvirt on this node."""

    def domains(self) -> Mapping[str, DomainState]:
        """Every domain by UUID, as last known."""

    def facts(self) -> object:
        """Raises LibvirtUnreachable if libvirt does not answer."""


class Newcomer(JoinApi):
    """See the contract. *at_work* names the tasks that are not over, *bridge_faults* says what is wrong with one,

    *drbd_faults* what keeps this node from replicating hard drives.
    """

    def __init__(
        self,
        *,
        membership: Membership,
        hypervisor: Hypervisor,
        at_work: Callable[[], Sequence[str]],
        bridge_faults: Callable[[str], Sequence[str]],
        drbd_faults: Callable[[], Sequence[str]] = tuple,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._membership = membership
        self._store = membership.store
        self._hypervisor = hypervisor
        self._at_work = at_work
        self._bridge_faults = bridge_faults
        self._drbd_faults = drbd_faults
        self._clock = clock
        self._lock = threading.Lock()
        self._ticket = ""
        self._began = 0.0
        self._found = parts.Found()

    def facts(self, questions: JoinQuestions) -> JoinerFacts:
        record = self._membership.record
        return JoinerFacts(
            name=self._membership.node,
            id=record.id,
            version=__version__,
            kinds=tuple(sorted(RECORDS)),
            address=record.address,
            port=record.port,
            members=len(self._store.all(NodeRecord)),
            machines=tuple(sorted(self._store.all(VmRecord))),
            domains=tuple(sorted(domain.name for domain in self._hypervisor.domains().values())),
            libvirt=self._libvirt_fault(),
            disks=tuple(sorted(self._store.all(DiskRecord))),
            backends=tuple(sorted(self._store.all(BackendRecord))),
            tasks=tuple(self._at_work()),
            unreached=_unreached(questions.members),
            bridges={name: self._bridge_fault(name) for name in questions.bridges},
            drbd=tuple(self._drbd_faults()) if questions.drbd else (),
            time=self._clock(),  # the last, so that nothing above makes it look old
        )

    def _libvirt_fault(self) -> str:
        try:
            self._hypervisor.facts()
        except LibvirtUnreachable as error:
            return str(error)
        return ""

    def _bridge_fault(self, name: str) -> str:
        try:
            return " ".join(self._bridge_faults(name))
        except BadArgument as error:
            return str(error)

    def begin(self) -> JoinBegun:
        with self._lock:
            if self._membership.beginning or self._membership.joining is not None:
                raise Conflict(text=f"Node '{self._membership.node}' is joining a cluster already.")
            self._began = time.monotonic()
            # First the gate, then the look: what comes in between finds the gate shut.
            self._membership.beginning = True
            try:
                if not self._membership.alone:
                    raise Conflict(text=f"Node '{self._membership.node}' is in a cluster with others by now.")
                if self._at_work():
                    raise Conflict(text=f"Node '{self._membership.node}' is at work: {', '.join(self._at_work())}.")
                self._membership.use_up(current_caller().token)
                csr = self._membership.keys.stage_key()
            except BaseException:
                self._membership.beginning = False
                raise
            self._ticket = secrets.token_urlsafe(24)
            self._found = parts.Found()
            return JoinBegun(csr=csr.decode(), ticket=self._ticket)

    @contextmanager
    def _with(self, ticket: str) -> Iterator[None]:
        with self._lock:
            if not self._ticket or not secrets.compare_digest(ticket.encode(), self._ticket.encode()):
                raise Conflict(text="This joining is over.")
            yield

    def hand_over(self, ticket: str, start: int, part: str) -> None:
        with self._with(ticket):
            if start != self._found.length or not self._membership.beginning:
                raise Conflict(text="This part of the configuration does not follow what came before.")
            self._found.add(part)
            self._began = time.monotonic()

    def take_over(self, ticket: str, package: JoinPackage) -> None:
        with self._with(ticket):
            found, self._found = self._found, parts.Found()
            try:
                snapshot = msgspec.convert(package.snapshot, Snapshot, strict=False)
                snapshot = msgspec.structs.replace(snapshot, content=found.text + snapshot.content)
            except msgspec.ValidationError as error:
                raise BadArgument(what="configuration", why=f"it can't be read: {error}.") from None
            membership = self._membership
            fingerprint = membership.keys.stage_authority(package.ca_key, package.trust, package.certificate)
            self._check(snapshot, fingerprint, package.cluster)
            membership.take_over(snapshot, Epoch(*package.promised), package.sponsor)
            membership.beginning = False

    def _check(self, snapshot: Snapshot, fingerprint: str, cluster: str) -> None:
        """Refuse a configuration in which this node would not find itself."""
        me = self._membership.record
        there, clusters = _records(snapshot, NodeRecord), _records(snapshot, ClusterRecord)
        mine = next((record for record in there if record.name == me.name), None)
        if mine is None or mine.id != me.id or mine.fingerprint != fingerprint or not mine.away:
            raise BadArgument(what="configuration", why=f"node '{me.name}' is not in it as it should be.")
        if [record.id for record in clusters] != [cluster]:
            raise BadArgument(what="configuration", why="it is that of another cluster.")

    def rejoin(self, ticket: str) -> None:
        with self._with(ticket):
            deadline = time.monotonic() + _COUNTED_IN_WITHIN
            while not self._counted_in():
                if time.monotonic() > deadline:
                    raise NodeUnreachable(node=self._membership.node, reason="the leader does not reach it.")
                # The leader tries the connection anew every few seconds; each change tells that it may have.
                self._membership.wait_for_change(0.5)
            self._membership.settle_joining()
            self._ticket = ""

    def _counted_in(self) -> bool:
        try:
            return self._membership.replicator.rejoin()
        except LeaderUnreachable:
            return False

    def give_up(self, ticket: str) -> None:
        with self._with(ticket):
            self.forget_joining()

    def settle(self) -> None:
        """Take back what a member has begun and not gone on with; for a timer."""
        with self._lock:
            if self._membership.beginning and time.monotonic() - self._began > _BEGUN_LASTS:
                self.forget_joining()

    def forget_joining(self) -> None:
        """Whatever was begun is taken back."""
        self._ticket = ""
        self._found = parts.Found()
        self._membership.revert()
        if self._membership.beginning:
            self._membership.keys.unstage()
            self._membership.beginning = False


class Leaver(MembershipApi):
    """See the contract."""

    def __init__(
        self,
        *,
        membership: Membership,
        hypervisor: Hypervisor,
        at_work: Callable[[], Sequence[str]],
    ) -> None:
        self._membership = membership
        self._hypervisor = hypervisor
        self._at_work = at_work

    def part(self) -> None:
        if self._at_work():
            raise Conflict(text=f"Node '{self._membership.node}' is at work: {', '.join(self._at_work())}.")
        domains = self._hypervisor.domains()
        for vm in self._membership.store.all(VmRecord).values():
            if vm.uuid in domains and domains[vm.uuid].active:
                raise VmRunning(name=vm.name)
        self._membership.announce_leaving(current_caller().peer)

    def parted(self) -> None:
        if not self._membership.announced():
            raise Conflict(text=f"Nobody has announced the removal of node '{self._membership.node}'.")
        self._membership.reset()


def _records(snapshot: Snapshot, kind: type[R]) -> list[R]:
    content = msgspec.json.decode(snapshot.content)
    return [msgspec.convert(data, kind) for name, data in content["puts"] if name == kind.kind]


def _unreached(members: Sequence[Place]) -> dict[str, str]:
    """Member to why it can't be reached from here."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = zip(members, pool.map(_connect_fault, members), strict=True)
        return {member.name: fault for member, fault in found if fault}


def _connect_fault(member: Place) -> str:
    try:
        socket.create_connection((member.address, member.port), timeout=_CONNECT_WITHIN).close()
    except TimeoutError:
        return f"{member.address}:{member.port} does not answer."
    except OSError as error:
        return f"{member.address}:{member.port}: {error.strerror or error}."
    return ""
