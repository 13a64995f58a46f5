"""The replication protocol at work: threads, turns and messages around `replicate.Replica`."""

from __future__ import annotations

import contextvars
import logging
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import msgspec

from mcvirt.errors import (
    ChangeUnknown,
    LeaderUnreachable,
    McvirtError,
    NodeUnreachable,
    NotLeader,
    StaleChange,
    StateNotWritable,
    StateRefused,
    from_wire,
)
from mcvirtd.state.log import Origin, StateLog, Statement, to_wire
from mcvirtd.state.order import Epoch, Message, Position, Snapshot
from mcvirtd.state.records import NodeRecord
from mcvirtd.state.replicate import Committed, Procedure, Replica
from mcvirtd.state.store import Change, Store
from mcvirtd.state.turns import Turns

log = logging.getLogger(__name__)
R = TypeVar("R")

TURN_WITHIN = 10.0
LEASE_SECONDS = 5.0
COMMIT_WITHIN = 10.0
_FOLLOW_AGAIN = 5.0

_left_behind: contextvars.ContextVar[set[str] | None] = contextvars.ContextVar("left_behind", default=None)


@contextmanager
def noting_left_behind() -> Iterator[set[str]]:
    """The names of members that were away when changes were made in the block."""
    names: set[str] = set()
    token = _left_behind.set(names)
    try:
        yield names
    finally:
        _left_behind.reset(token)


def note_left_behind(names: Iterable[str]) -> None:
    """Changes were made without these members."""
    noted = _left_behind.get()
    if noted is not None:
        noted.update(names)


_without: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("without", default=frozenset())


@contextmanager
def going_on_without(names: Iterable[str]) -> Iterator[None]:
    """In the block, an operator's word counts that these members are gone.

    They do not count when a majority is asked for. A leader among them that does not answer is replaced by this node,
    unless any member reaches it; most of the members that count must agree to that.
    """
    token = _without.set(frozenset(names))
    try:
        yield
    finally:
        _without.reset(token)


def given_up() -> frozenset[str]:
    """The members that are said to be gone."""
    return _without.get()


class Transport(Protocol):
    """Carries messages to other members."""

    def ask_all(self, messages: Mapping[str, Message], within: float) -> dict[str, Message | None]:
        """Ask members at the same time; None for who did not answer within *within* seconds."""

    def silent(self) -> Sequence[str]:
        """Members that have not been heard of lately."""


class MemberStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where a member is: *lag* is how many changes it lacks, None if that is not known."""

    name: str
    away: bool
    revision: int | None
    lag: int | None


class Replicator:
    """This member's part in the cluster. `Store.replicate_with` makes it order the store's changes."""

    def __init__(self, name: str, store: Store, transport: Transport) -> None:
        self.name = name
        self._store = store
        self.log = StateLog(store, name)
        self.replica = Replica(name, self.log)
        self._transport = transport
        # Held while protocol code runs, never while it waits for other members.
        self._member = threading.RLock()
        self._turns = Turns()
        self._lease: tuple[str, str, Position] | None = None  # token, leader, base; of the turn this node has
        self._news = threading.Condition()
        self._behind = False
        self._seen: dict[str, int] = {}
        self._stopped = False
        # Why this node can't store what the others have; "" while it can.
        self.trouble = ""
        # Called when an operator's word has made this node the leader in the middle of something.
        self.replaced: Callable[[str], None] = lambda leader: None  # noqa: ARG005
        self._thread: threading.Thread | None = None
        # Set by who knows: why a member that answers is not asked.
        self.fault_of: Callable[[str], McvirtError | None] = lambda member: None  # noqa: ARG005
        self._leader_heard: Callable[[str], bool] = lambda leader: leader not in transport.silent()

    # --- driving ----------------------------------------------------------------------------------------------------

    def _run(self, procedure: Procedure[R]) -> R:
        answers: Mapping[str, Message | None] | None = None
        while True:
            with self._member:
                try:
                    ask = next(procedure) if answers is None else procedure.send(answers)
                except StopIteration as stop:
                    result: R = stop.value
                    return result
            answers = self._transport.ask_all(ask.messages, ask.within) if ask.messages else {}

    @property
    def alone(self) -> bool:
        """Whether this node is all of its cluster."""
        return len(self._store.all(NodeRecord)) <= 1

    # --- Turns, for the store ---------------------------------------------------------------------------------------

    @contextmanager
    def turn(self) -> Iterator[None]:
        """In the block nobody else makes a change, and everything that was changed before is here."""
        if self.alone:
            self._lease = self._own_turn()
            try:
                yield
            finally:
                self._end_turn()
            return
        self._replace_leader()
        leader = self.replica.leader
        self._lease = self._own_turn() if self.replica.is_leader else self._borrow_turn(leader)
        try:
            yield
        finally:
            self._end_turn()

    def _replace_leader(self) -> None:
        leader = self.replica.leader
        if leader == self.name or leader not in given_up() or leader not in self._transport.silent():
            return
        log.warning("an operator says that the leader '%s' is off: this node takes its place", leader)
        self.promote(confirmed=False, without=given_up())
        self.replaced(leader)

    def _own_turn(self) -> tuple[str, str, Position]:
        return self._take_turn(), self.name, self.replica.position()

    def _take_turn(self) -> str:
        turn = self._turns.take(TURN_WITHIN)
        if not turn:
            raise StaleChange(revision=self.replica.position().revision)
        return turn

    def _borrow_turn(self, leader: str) -> tuple[str, str, Position]:
        answer = self._ask(leader, {"kind": "turn.begin"}, TURN_WITHIN + 2)
        base = msgspec.convert(answer["base"], Position, strict=False)
        turn = str(answer["turn"])
        try:
            if self.replica.position() != base:
                self._run(self.replica.catch_up(leader))
            if self.replica.position() != base:
                raise StaleChange(revision=base.revision)
        except McvirtError as error:
            self._note_trouble(error)
            self._release(leader, turn)
            raise
        return turn, leader, base

    def _end_turn(self) -> None:
        turn, leader, _ = self._lease or ("", "", None)
        self._lease = None
        if leader == self.name:
            self._turns.give(turn)
        elif turn:
            self._release(leader, turn)

    def _release(self, leader: str, turn: str) -> None:
        try:
            self._ask(leader, {"kind": "turn.release", "turn": turn}, 2.0)
        except McvirtError as error:
            log.info("the turn is left to end by itself: %s", error)

    def commit(self, change: Change) -> None:
        """Have *change* stored by the cluster; when this returns, it is also stored here."""
        assert self._lease is not None
        turn, leader, base = self._lease
        if self.alone and len([record for record in change.puts.values() if isinstance(record, NodeRecord)]) == 0:
            self._store._commit(change)
            return
        token = secrets.token_hex(8)
        self.log.wait_for(token, change)
        text = to_wire(change, Origin(self.name, token))
        try:
            if leader == self.name:
                committed = self._run(self.replica.order(text, base, self._transport.silent(), given_up()))
            else:
                committed = self._commit_elsewhere(leader, turn, base, text)
        finally:
            self.log.give_up(token)
        note_left_behind(committed.away)

    def _commit_elsewhere(self, leader: str, turn: str, base: Position, text: str) -> Committed:
        message = {"kind": "turn.commit", "turn": turn, "base": base, "change": text, "without": list(given_up())}
        try:
            answer = self._ask(leader, message, COMMIT_WITHIN)
        except (LeaderUnreachable, NodeUnreachable) as error:
            raise ChangeUnknown(revision=base.revision + 1, reason=f"node '{leader}' did not answer.") from error
        committed = msgspec.convert(answer["committed"], Committed, strict=False)
        if self.replica.position().revision < committed.entry.revision:
            try:
                self._run(self.replica.catch_up(leader))
            except McvirtError as error:
                self._note_trouble(error)
                why = f"the cluster has it, but node '{self.name}' itself has not: {error}"
                raise ChangeUnknown(revision=committed.entry.revision, reason=why) from error
        return committed

    def _ask(self, member: str, message: Message, within: float) -> Message:
        answer = self._transport.ask_all({member: message}, within).get(member)
        if answer is None:
            raise self.fault_of(member) or LeaderUnreachable(leader=member)
        if "error" in answer:
            raise from_wire(answer["error"])
        return answer

    # --- answering --------------------------------------------------------------------------------------------------

    def handle(self, sender: str, message: Message) -> Message:
        """Answer a message of another member; an error of ours goes back as one."""
        try:
            kind = str(message.get("kind"))
            if kind.startswith("turn.") or kind == "rejoin":
                if sender not in self.log.members():
                    return {"stranger": True}
                answer = getattr(self, "_on_" + kind.replace(".", "_"))(sender, message)
                with self._member:
                    return {**answer, "promised": self.log.promised()}
            leader = self.replica.leader
            with self._member:
                answer = self.replica.handle(sender, message, reaches_leader=self._leader_heard(leader))
            if answer.get("stored"):
                self.trouble = ""
            return answer
        except McvirtError as error:
            self._note_trouble(error)
            return {"error": error.to_wire()}

    def _on_turn_begin(self, sender: str, message: Message) -> Message:  # noqa: ARG002
        if not self.replica.is_leader:
            raise NotLeader(leader=self.replica.leader)
        turn = self._turns.take(TURN_WITHIN, LEASE_SECONDS)
        if not turn:
            raise StaleChange(revision=self.replica.position().revision)
        with self._member:
            return {"turn": turn, "base": self.replica.position()}

    def _on_turn_commit(self, sender: str, message: Message) -> Message:
        turn = str(message["turn"])
        if not self._turns.keep(turn):
            raise StaleChange(revision=self.replica.position().revision)
        base = msgspec.convert(message["base"], Position, strict=False)
        try:
            silent = [name for name in self._transport.silent() if name != sender]
            without = frozenset(message.get("without", ())) - {sender, self.name}
            committed = self._run(self.replica.order(str(message["change"]), base, silent, without))
        finally:
            self._turns.give(turn)
        return {"committed": committed}

    def _on_turn_release(self, sender: str, message: Message) -> Message:  # noqa: ARG002
        self._turns.give(str(message["turn"]))
        return {}

    def _on_rejoin(self, sender: str, message: Message) -> Message:
        position = msgspec.convert(message["position"], Position, strict=False)
        if sender in self._transport.silent():
            # It reaches this node, but could not be told of the next change yet.
            return {"back": False}
        turn = self._turns.take(TURN_WITHIN)
        if not turn:
            return {"back": False}
        try:
            return {"back": self._run(self.replica.readmit(sender, position))}
        finally:
            self._turns.give(turn)

    # --- following --------------------------------------------------------------------------------------------------

    def _note_trouble(self, error: McvirtError) -> None:
        if isinstance(error, StateNotWritable | StateRefused):
            if not self.trouble:
                log.error("this node can't take over changes of the cluster: %s", error)
            self.trouble = str(error)

    def facts(self) -> Message:
        """What a heartbeat says of this member's place."""
        with self._member:
            return {
                "promised": self.log.promised(),
                "position": self.replica.position(),
                "leads": self.replica.is_leader,
            }

    def observe(self, member: str, facts: Mapping[str, Any]) -> None:
        """A heartbeat's facts: a higher epoch is followed, and a leader that is ahead is caught up with."""
        with self._member:
            try:
                self.replica._hear(dict(facts))
            except StateNotWritable as error:  # the heartbeat is an answered one all the same
                self._note_trouble(error)
                return
            follows = member == self.replica.leader and bool(facts.get("leads")) and member != self.name
            there = msgspec.convert(facts["position"], Position, strict=False)
            self._seen[member] = there.revision
            away = self.log.members().get(self.name, False)
            behind = (follows and (away or there != self.replica.position())) or self.replica.is_nominated
        if behind:
            with self._news:
                self._behind = True
                self._news.notify_all()

    def revision_of(self, member: str) -> int | None:
        """How far *member* was when it was last heard of; None if it never was."""
        return self.replica.position().revision if member == self.name else self._seen.get(member)

    def start(self) -> None:
        """Begin to follow."""
        self._thread = threading.Thread(target=self._follow, name="replication", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Follow no longer."""
        with self._news:
            self._stopped = True
            self._news.notify_all()
        if self._thread is not None:
            self._thread.join(5.0)

    def _follow(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._behind or self._stopped)
                if self._stopped:
                    return
                self._behind = False
            try:
                if self.replica.is_nominated:
                    self.promote(confirmed=False)
                elif not self._run(self.replica.rejoin(self.replica.leader)):
                    log.warning("the leader '%s' did not take this node back yet", self.replica.leader)
                self.trouble = ""
            except McvirtError as error:
                self._note_trouble(error)
                log.info("catching up failed: %s", error)
            except Exception:
                log.exception("catching up failed")

    def catch_up(self) -> bool:
        """Be where the leader is, if it can be reached; False if it can't."""
        if self.alone or self.replica.is_leader:
            return True
        try:
            self._run(self.replica.catch_up(self.replica.leader))
        except McvirtError as error:
            log.warning("%s", error)
            return False
        return True

    def become(self, snapshot: Snapshot, promised: Epoch, statements: Sequence[Statement] = ()) -> None:
        """See StateLog.become; no change is made meanwhile."""
        turn = self._take_turn()
        try:
            with self._member:
                self.log.become(snapshot, promised, statements)
        finally:
            self._turns.give(turn)

    def rejoin(self) -> bool:
        """Catch up with the leader, and be counted in; False if it would not. Raises LeaderUnreachable."""
        return self._run(self.replica.rejoin(self.replica.leader))

    # --- leading ----------------------------------------------------------------------------------------------------

    def promote(self, *, confirmed: bool, planned: bool = False, without: Collection[str] = ()) -> tuple[str, ...]:
        """Make this node the leader; returns the members that do not know yet. See `Replica.promote`."""
        turn = self._take_turn()
        try:
            return self._run(self.replica.promote(confirmed=confirmed, planned=planned, without=without)).away
        finally:
            self._turns.give(turn)
