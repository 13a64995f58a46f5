"""Taking a node into the cluster, from the side of the member that is asked to.

    look    facts of both sides, all checks                                    nothing is changed
    begin   the node uses up its connect string and makes a key                undone by the node itself
    record  the node's member record, marked away, in the cluster              undone by deleting it while it is away
    take    the node takes the whole configuration over, in one commit         undone by the node: it is what it was
    rejoin  the node catches up, and the leader marks it as back               the commit point of the whole

The leader marks a node as back only after it has reached the node and the node has reached it. Until then the record
can be deleted by one change; and a node whose record is gone is told so by the leader, and is what it was before. So
whichever side dies at whatever moment, the node is in the cluster or it is blank.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar, cast

import msgspec

from mcvirt import __version__
from mcvirt.api.membership import JoinApi
from mcvirt.errors import (
    AlreadyExists,
    Conflict,
    ConnectStringRefused,
    JoinFailed,
    McvirtError,
    NodeUnreachable,
    NotAuthenticated,
    NotSuitable,
    TaskCancelled,
    UndoIncomplete,
)
from mcvirt.rpc.contract import Operation
from mcvirt.rpc.proxy import make_client
from mcvirt.rpc.transport import Connection
from mcvirt.types.membership import JoinBegun, JoinCheck, JoinerFacts, JoinPackage, JoinQuestions, JoinReport, Place
from mcvirtd.cluster import certificates, connect_string, pki, suitability, tls
from mcvirtd.cluster.connect_string import ConnectString
from mcvirtd.cluster.membership import Membership
from mcvirtd.cluster.suitability import ClusterFacts
from mcvirtd.state import parts
from mcvirtd.state.order import Snapshot
from mcvirtd.state.records import RECORDS, BackendRecord, ClusterRecord, DrbdRecord, NetworkRecord, NodeRecord
from mcvirtd.state.replication import note_left_behind, noting_left_behind
from mcvirtd.tasks.task import step
from mcvirtd.tasks.transaction import Journal

log = logging.getLogger(__name__)
T = TypeVar("T")

FORGET = "cluster.forget_newcomer"
_CONNECT_WITHIN = 5.0
_CALL_WITHIN = 60.0
_TURN_WITHIN = 60.0


class Joining:
    """See the module."""

    def __init__(
        self,
        *,
        membership: Membership,
        journal: Journal,
        reach: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """*reach* tries at once to connect to a member that may be there by now."""
        self._reach = reach
        self._joining = threading.Lock()
        self._membership = membership
        self._store = membership.store
        self._journal = journal
        self._clock = clock
        journal.register(FORGET, self._forget)

    def add(self, text: str, *, dry_run: bool) -> JoinReport:
        """Take in the node of the connect string *text*; see the contract."""
        wanted = connect_string.decode(text)
        self._membership.note_port()
        self._check_known(wanted)
        node = _Newcomer(wanted)
        try:
            with step("Looking at the node"):
                try:
                    checks, facts = self._look(node)
                except NodeUnreachable:
                    connect_string.refuse_expired(wanted, self._clock())
                    raise
            faults = suitability.faults(checks)
            if not dry_run:
                if faults:
                    raise NotSuitable(node=wanted.name, reasons=" ".join(_sentence(fault) for fault in faults))
                with self._alone_at_it():
                    self._join(node, facts)
        finally:
            node.close()
        address = f"{wanted.address}:{wanted.port}"
        return JoinReport(node=wanted.name, address=address, joined=not dry_run, checks=checks)

    @contextmanager
    def _alone_at_it(self) -> Iterator[None]:
        # Two that are away while they join could cost the cluster its majority.
        if not self._joining.acquire(timeout=_TURN_WITHIN):
            raise Conflict(text="Another node is being taken in. Try again in a moment.")
        try:
            yield
        finally:
            self._joining.release()

    def _check_known(self, wanted: ConnectString) -> None:
        if wanted.fingerprint == self._membership.keys.identity.key_fingerprint:
            raise ConnectStringRefused(
                reason=f"it is that of this node, '{self._membership.node}', itself. Make one on the other node."
            )
        for record in self._store.all(NodeRecord).values():
            # A node has another key once it has joined: the string that it joined by still names the old one.
            same = record.name == wanted.name and record.address == wanted.address
            if same or record.fingerprint == wanted.fingerprint:
                raise ConnectStringRefused(reason=f"node '{record.name}' is a member of this cluster already.")

    # --- look ---------------------------------------------------------------------------------------------------------

    def _look(self, node: _Newcomer) -> tuple[tuple[JoinCheck, ...], JoinerFacts]:
        members = self._store.all(NodeRecord)
        networks = self._store.all(NetworkRecord)
        drbd = self._store.get(DrbdRecord, "drbd")
        replicates = drbd is not None and drbd.enabled
        questions = JoinQuestions(
            members=tuple(
                Place(name, record.address, record.port)
                for name, record in members.items()
                if record.address and not record.away
            ),
            bridges=tuple(sorted({network.interface for network in networks.values()})),
            drbd=replicates,
        )
        # The first call also makes the connection, which would look like a difference of the clocks.
        node.facts(JoinQuestions(members=(), bridges=()))
        facts = node.facts(questions)
        quick = node.facts(JoinQuestions(members=(), bridges=()))
        gap = quick.time - self._clock()
        cluster = ClusterFacts(
            here=self._membership.node,
            members={name: record.address for name, record in members.items()},
            ids={name: record.id for name, record in members.items()},
            version=__version__,
            kinds=tuple(sorted(RECORDS)),
            bridges={name: network.interface for name, network in networks.items()},
            backends=tuple(sorted(self._store.all(BackendRecord))),
            drbd=replicates,
        )
        wanted = node.wanted
        place = Place(wanted.name, wanted.address, wanted.port)
        return suitability.checks(cluster, facts, place=place, clock_gap=gap), facts

    # --- join ---------------------------------------------------------------------------------------------------------

    def _join(self, node: _Newcomer, facts: JoinerFacts) -> None:
        name = node.wanted.name
        try:
            with self._journal.transaction() as tx:
                with step("Asking for a key"):
                    begun = node.begin()
                    certificate = self._sign(begun, node.wanted)
                fingerprint = certificates.key_fingerprint(_loaded(certificate))
                tx.undo(FORGET, name=name, fingerprint=fingerprint)
                with step("Telling the members"):
                    self._record(facts, node.wanted, fingerprint)
                with step("Handing the configuration over"):
                    configuration = self._membership.replicator.log.whole()
                    node.take_over(begun.ticket, self._package(certificate), configuration)
                with step("Waiting until it has caught up"):
                    self._reach(name)
                    node.rejoin(begun.ticket)
                    self._expect_in(name, fingerprint)
                tx.keep()
        except (UndoIncomplete, TaskCancelled):
            node.give_up()
            raise
        except McvirtError as error:
            if self._is_in(name):
                log.warning("node %s has joined, although its last answer did not come: %s", name, error)
                return
            node.give_up()
            if isinstance(error, NotSuitable | ConnectStringRefused | AlreadyExists):
                raise
            self._failed(name, error)
        except BaseException:
            node.give_up()
            raise

    def _failed(self, name: str, error: McvirtError) -> NoReturn:
        raise JoinFailed(
            node=name,
            reason=str(error),
            state="The cluster is as it was, and so is the node; make a new connect string there to try again.",
        ) from error

    def _sign(self, begun: JoinBegun, wanted: ConnectString) -> bytes:
        return pki.sign_csr(self._membership.keys.identity, begun.csr.encode(), wanted.name, [wanted.address])

    def _record(self, facts: JoinerFacts, wanted: ConnectString, fingerprint: str) -> None:
        with noting_left_behind() as behind, self._store.change() as change:
            members = change.all(NodeRecord)
            if wanted.name in members:
                raise AlreadyExists(kind="node", name=wanted.name)
            taken = next((record.name for record in members.values() if record.address == wanted.address), None)
            if taken is not None:
                raise NotSuitable(node=wanted.name, reasons=f"Member '{taken}' has its address, {wanted.address}, too.")
            away = sorted(record.name for record in members.values() if record.away)
            if away and (len(members) - len(away)) * 2 <= len(members) + 1:
                raise NotSuitable(
                    node=wanted.name,
                    reasons=f"{', '.join(away)} are away, or joining: with one node more, which is away until it has "
                    "joined, half of the cluster would be missing. Try again when they are back.",
                )
            change.put(
                NodeRecord(
                    name=wanted.name,
                    id=facts.id,
                    address=wanted.address,
                    port=wanted.port,
                    fingerprint=fingerprint,
                    away=True,
                )
            )

        # The node itself is away until it has joined; nobody needs to be told.
        note_left_behind(behind - {wanted.name})

    def _package(self, certificate: bytes) -> JoinPackage:
        ca_key, trust = pki.authority_files(self._membership.keys.identity)
        cluster = self._store.get(ClusterRecord, "cluster")
        log_ = self._membership.replicator.log
        promised = log_.promised()
        return JoinPackage(
            cluster=cluster.id if cluster is not None else "",
            sponsor=self._membership.node,
            ca_key=ca_key.decode(),
            trust=trust.decode(),
            certificate=certificate.decode(),
            snapshot={},
            promised=(promised.number, promised.leader),
        )

    def _is_in(self, name: str) -> bool:
        """Whether the leader has counted the node in, as far as is known here."""
        record = self._store.get(NodeRecord, name)
        return record is not None and not record.away

    def _expect_in(self, name: str, fingerprint: str) -> None:
        record = self._store.get(NodeRecord, name)
        if record is None or record.fingerprint != fingerprint:
            raise NodeUnreachable(node=name, reason="its record is gone.")

    def _forget(self, name: str, fingerprint: str) -> None:
        """Undo: no record of the node, unless it is counted in."""
        record = self._store.get(NodeRecord, name)
        if record is None or record.fingerprint != fingerprint:
            return
        with self._store.change() as change:
            now = change.get(NodeRecord, name)
            if now is not None and now.fingerprint == fingerprint and now.away:
                change.delete(NodeRecord, name)


class _Newcomer:
    """The connection to the node that is to join."""

    def __init__(self, wanted: ConnectString) -> None:
        self.wanted = wanted
        self._ticket = ""
        self._connection = Connection(
            wanted.address,
            wanted.port,
            tls.pinned_context(wanted.fingerprint),
            {"join": wanted.secret},
            node=wanted.name,
            timeout=_CALL_WITHIN,
            connect_timeout=_CONNECT_WITHIN,
        )
        self._api = make_client(JoinApi, self._connection, no_tasks)

    def facts(self, questions: JoinQuestions) -> JoinerFacts:
        """What the node says of itself; ConnectStringRefused if it does not take the secret."""
        return self._asked(lambda: self._api.facts(questions))

    def begin(self) -> JoinBegun:
        """Use up the connect string."""
        begun = self._asked(self._api.begin)
        self._ticket = begun.ticket
        return begun

    def _asked(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except NotAuthenticated as error:
            raise ConnectStringRefused(reason=str(error)) from None

    def take_over(self, ticket: str, package: JoinPackage, configuration: Snapshot) -> None:
        """Hand everything over: *configuration* in parts, of which the last comes with *package*."""
        *before, last = parts.split(configuration.content)
        start = 0
        for part in before:
            self._api.hand_over(ticket, start, part)
            start += len(part)
        snapshot = msgspec.to_builtins(msgspec.structs.replace(configuration, content=last))
        self._api.take_over(ticket, msgspec.structs.replace(package, snapshot=cast(dict[str, object], snapshot)))

    def rejoin(self, ticket: str) -> None:
        """Have it catch up and be counted in."""
        self._api.rejoin(ticket)

    def give_up(self) -> None:
        """Tell the node that it is over; it finds out by itself, too."""
        if not self._ticket:
            return
        try:
            self._api.give_up(self._ticket)
        except McvirtError as error:
            log.warning("node %s could not be told that it does not join: %s", self.wanted.name, error)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def no_tasks(task: str, operation: Operation) -> msgspec.Raw:
    """For operations between members, of which none is a task."""
    raise TypeError(f"{operation} became task {task}, and is not one")


def _loaded(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
