"""One order of changes for all members: the protocol, without threads, sockets or clocks.

One member is leader of an *epoch*: a number and the leader's name, so that no two members ever lead the same one. The
leader gives every change its revision, stores it, has every member that is not away store it, and only then is the
change a success. Members that do not answer are marked away by the next change and not waited for again.

Procedures that ask other members are generators: they yield `Ask`, get the answers, and return their result. Whoever
drives them (threads in the daemon, a simulator in the tests) decides how messages travel and when they are lost, and
holds the member's lock while a procedure or a handler runs, but not while one waits for answers: whatever was true
before a `yield` is looked at again after it. Nothing here keeps anything that must survive in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from typing import TypeGuard, TypeVar

import msgspec

from mcvirt.errors import (
    ChangeUnknown,
    LeaderAlive,
    LeaderUnreachable,
    NoMajority,
    NotLeader,
    PromotionUnconfirmed,
    StaleChange,
    StateNotWritable,
)
from mcvirtd.state import parts
from mcvirtd.state.order import (
    Entry,
    Epoch,
    Log,
    Message,
    Position,
    Snapshot,
    last_common,
    promised_in,
    read_epoch,
    read_position,
)

R = TypeVar("R")
Answers = Mapping[str, Message | None]
Names = Collection[str]

PUSH_WITHIN = 2.0
ASK_WITHIN = 2.0
CATCH_UP_WITHIN = 30.0
# A rejoining member that can't keep up with the changes made meanwhile tries this often before it begins anew.
REJOIN_TRIES = 20


class Ask(msgspec.Struct, frozen=True):
    """Ask members at the same time, each its own message, and go on when all have answered or time is up."""

    messages: dict[str, Message]
    within: float


Procedure = Generator[Ask, Answers, R]


class Committed(msgspec.Struct, frozen=True):
    """A change that is stored where it must be; *away* are the members that have not got it."""

    entry: Entry
    away: tuple[str, ...]


class Replica:
    """One member's part in it. *name* is the member's."""

    def __init__(self, name: str, log: Log) -> None:
        self.name = name
        self._log = log
        self._offered = parts.Offered()

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def leader(self) -> str:
        """The leader of the highest epoch that this member knows of."""
        return self._log.promised().leader

    @property
    def is_leader(self) -> bool:
        """Whether this member leads, as far as it knows.

        Others may have promised it an epoch of which it stored nothing, because it died before: that is no leading.
        """
        promised = self._log.promised()
        return promised.leader == self.name and self._log.position().epoch == promised

    def position(self) -> Position:
        """The last change that is stored here."""
        return self._log.position()

    def others(self) -> Sequence[str]:
        """The other members, away or not."""
        return [member for member in self._log.members() if member != self.name]

    @property
    def is_nominated(self) -> bool:
        """Whether others have promised this member an epoch that has not begun: it died, and nobody leads."""
        return self.leader == self.name and not self.is_leader

    # --- ordering changes (on the leader) ---------------------------------------------------------------------------

    def order(self, change: str, base: Position, silent: Names, without: Names = ()) -> Procedure[Committed]:
        """Give *change* its place after *base*, and have it stored.

        *silent* are members that have not been heard of lately; those *without* which an operator wants to go on are
        none where a majority is asked for. Raises NotLeader, StaleChange or NoMajority before
        anything is stored, and ChangeUnknown when it was stored here but not by a majority. The caller lets nobody
        else order anything meanwhile.
        """
        if not self.is_leader:
            raise NotLeader(leader=self.leader)
        if base != self._log.position():
            raise StaleChange(revision=self._log.position().revision)
        self._require_majority([name for name in self._log.members() if name not in silent], without)
        entry = self._append(change)
        away = yield from self._push(entry, without)
        return Committed(entry, tuple(away))

    def _require_majority(self, agreeing: Names, without: Names) -> None:
        """Raise NoMajority unless this member and those *agreeing* are more than half of all but those *without*."""
        members = self._log.members()
        counting = [name for name in members if name == self.name or name not in without]
        heard = [name for name in counting if name == self.name or name in agreeing]
        if len(members) > 2 and len(heard) * 2 <= len(counting):
            raise NoMajority(heard=len(heard), members=len(counting))

    def _append(self, change: str, epoch: Epoch | None = None) -> Entry:
        position = self._log.position()
        entry = Entry(epoch or self._log.promised(), position.revision + 1, position.epoch, change)
        self._log.append(entry)
        return entry

    def _push(self, entry: Entry, without: Names = ()) -> Procedure[list[str]]:
        """Have *entry* stored by all members that are not away; those that do not are marked, by entries like it."""
        while True:
            members = self._log.members()
            there = [name for name, away in members.items() if not away and name != self.name]
            answers = dict((yield Ask({name: _append_message([entry]) for name in there}, PUSH_WITHIN)))
            self._still_leads(entry, answers)
            missing = {
                name: _append_message(entries)
                for name, answer in answers.items()
                if answer is not None and (entries := self._missing(answer))
            }
            if missing:
                answers.update((yield Ask(missing, PUSH_WITHIN)))
                self._still_leads(entry, answers)
            failed = [name for name in there if not _stored(answers.get(name))]
            count = sum(name not in without for name in members)
            if len(members) > 2 and (len(there) - len(failed) + 1) * 2 <= count:
                raise ChangeUnknown(revision=entry.revision, reason=_unstored(failed))
            if not failed:
                return sorted(name for name, away in self._log.members().items() if away)
            try:
                entry = self._append(self._log.marked(failed, []))
            except StateNotWritable as error:
                # The change is stored here, so it has not failed; but nobody could be told who has not got it.
                raise ChangeUnknown(revision=entry.revision, reason=f"{_unstored(failed)} {error}") from error

    def _missing(self, answer: Message) -> Sequence[Entry] | None:
        """What a member that is merely behind lacks; None if it has stored all, or its log went another way."""
        if answer.get("stored") or "position" not in answer:
            return None
        theirs = read_position(answer["position"])
        if self._log.epoch_of(theirs.revision) != theirs.epoch:
            return None
        entries = self._log.after(theirs.revision, parts.SIZE)
        # Who lacks more than goes into a message catches up by itself.
        return entries if entries and entries[-1].position == self._log.position() else None

    def _still_leads(self, entry: Entry, answers: Answers) -> None:
        for answer in answers.values():
            if answer is not None:
                self._hear(answer)
        if self._log.promised() != entry.epoch:
            # It is stored here, and perhaps elsewhere: the next leader decides whether it stands.
            raise ChangeUnknown(revision=entry.revision, reason=f"node '{self.leader}' leads by now.")

    # --- following --------------------------------------------------------------------------------------------------

    def catch_up(self, source: str) -> Procedure[Position]:
        """Take over what *source* has and this member has not; returns where this member then is.

        What only this member has is kept aside if it can't be part of that history. Raises LeaderUnreachable if
        *source* does not answer.
        """
        tries = REJOIN_TRIES
        while tries:
            mine = self._log.position()
            answer = yield from self._ask_one(source, {"kind": "entries", "position": mine}, CATCH_UP_WITHIN)
            self._hear(answer)
            if answer.get("same"):
                return self._log.position()
            if "entries" in answer:
                self._take(msgspec.convert(answer["entries"], list[Entry], strict=False))
            else:
                snapshot = yield from self._whole(source, answer)
                if snapshot is not None:
                    self._replace(snapshot)
            if not (answer.get("more") and self._log.position() > mine):
                tries -= 1
        return self._log.position()

    def _whole(self, source: str, answer: Message) -> Procedure[Snapshot | None]:
        """The snapshot that *answer* begins; None if *source* has another one by now."""
        snapshot = msgspec.convert(answer["snapshot"], Snapshot, strict=False)
        found = parts.Found(snapshot.content, answer.get("size"))
        while found.missing:
            message = {"kind": "part", "position": snapshot.position, "offset": found.length}
            answer = yield from self._ask_one(source, message, CATCH_UP_WITHIN)
            self._hear(answer)
            if not found.add(answer.get("part")):
                return None
        return msgspec.structs.replace(snapshot, content=found.text)

    def _take(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            position = self._log.position()
            if entry.revision == position.revision + 1 and entry.before == position.epoch:
                self._log.append(entry)

    def _replace(self, snapshot: Snapshot) -> None:
        mine = self._log.position()
        if snapshot.position < mine and mine.epoch == self._log.promised():
            return  # an old answer: what is here belongs to a newer epoch already
        common = last_common(self._log.epochs(), mine.revision, snapshot)
        own = self._log.after(common)
        whole = self._log.snapshot() if own is None else None
        self._log.replace(snapshot, own or [], whole)

    def rejoin(self, lead: str) -> Procedure[bool]:
        """Catch up with the leader until it marks this member as back; False if it would not in many tries."""
        for _ in range(REJOIN_TRIES):
            yield from self.catch_up(lead)
            answer = yield from self._ask_one(lead, {"kind": "rejoin", "position": self._log.position()}, ASK_WITHIN)
            self._hear(answer)
            if answer.get("back"):
                return True
        return False

    def _ask_one(self, member: str, message: Message, within: float) -> Procedure[Message]:
        answers = yield Ask({member: message}, within)
        answer = answers.get(member)
        if not _meant(answer):
            raise LeaderUnreachable(leader=member)
        return answer

    def _hear(self, answer: Message) -> None:
        epoch = read_epoch(answer.get("promised"))
        if epoch is not None and epoch > self._log.promised():
            self._log.promise(epoch)

    # --- promoting --------------------------------------------------------------------------------------------------

    def promote(self, *, confirmed: bool, planned: bool = False, without: Names = ()) -> Procedure[Committed]:
        """Make this member the leader of a new epoch.

        Raises LeaderAlive if the leader answers or another member reaches it, and PromotionUnconfirmed where less than
        a majority of all members answers and no operator has *confirmed* that the leader is off. Where an operator
        wants to go on *without* some, a majority of the others will do, and NoMajority is raised where it is missing:
        a member that is silent and not named is not passed over. *planned* takes over from a leader that must be
        alive: it is asked like the others, and promises, so that nothing of it is lost.
        """
        others = self.others()
        answers = yield Ask({name: {"kind": "status"} for name in others}, ASK_WITHIN)
        alive = {name: answer for name, answer in answers.items() if answer is not None and _meant(answer)}
        for answer in alive.values():
            self._hear(answer)  # somebody may lead by now of whom this member has not heard yet
        leader = self.leader
        if not planned:
            self._refuse_if_alive(leader, alive)
        elif leader not in alive and leader != self.name:
            raise LeaderUnreachable(leader=leader)
        if not confirmed:
            self._require_agreement(leader, alive, without)
        best = max(alive, key=lambda name: read_position(alive[name]["position"]), default=None)
        if best is not None and read_position(alive[best]["position"]) > self._log.position():
            yield from self.catch_up(best)
        number = max([self._log.promised().number, *(promised_in(answer).number for answer in alive.values())]) + 1
        epoch = Epoch(number, self.name)
        promises = yield Ask({name: {"kind": "promise", "epoch": epoch} for name in alive}, ASK_WITHIN)
        promises = {name: answer for name, answer in promises.items() if _meant(answer)}
        granted = [name for name, answer in promises.items() if answer and answer.get("granted")]
        # A member that stored more between its status and its promise would lose it to us: begin anew.
        newer = [name for name in granted if read_position((promises[name] or {})["position"]) > self._log.position()]
        refused = [name for name, answer in promises.items() if answer and not answer.get("granted")]
        if newer or refused:
            raise PromotionUnconfirmed(leader=leader, heard=len(granted) + 1, members=len(others) + 1)
        if not confirmed:
            self._require_agreement(leader, granted, without)
        if epoch < self._log.promised():  # the same, if a heartbeat was faster in saying that it was promised to us
            raise NotLeader(leader=self.leader)
        away = [name for name in others if name not in granted]
        # Stored with the promise in it: a leader of that epoch that has not said so must never come back from a crash.
        entry = self._append(self._log.promotion(self.name, number, away), epoch)
        left = yield from self._push(entry, away if confirmed else without)
        return Committed(entry, tuple(left))

    def _require_agreement(self, leader: str, agreeing: Names, without: Names) -> None:
        if without:
            self._require_majority(agreeing, without)
            return
        members = self._log.members()
        if (len(agreeing) + 1) * 2 <= len(members):
            raise PromotionUnconfirmed(leader=leader, heard=len(agreeing) + 1, members=len(members))

    def _refuse_if_alive(self, leader: str, alive: Mapping[str, Message]) -> None:
        if self.is_leader or (leader in alive and alive[leader].get("leads")):
            raise LeaderAlive(leader=leader, witness=self.name)
        if leader in alive or leader == self.name:
            return  # it says itself that it does not lead: it died before the first change of its epoch
        for name, answer in alive.items():
            if answer.get("reaches_leader") and answer.get("leader") == leader:
                raise LeaderAlive(leader=leader, witness=name)

    # --- answering ----------------------------------------------------------------------------------------------------

    def handle(self, sender: str, message: Message, *, reaches_leader: bool = False) -> Message:
        """Answer a message of another member. "rejoin" is not for here: it needs the leader's turn (`readmit`)."""
        if sender not in self._log.members():
            return {"stranger": True}
        answer = getattr(self, f"_on_{message['kind']}")(message)
        if message["kind"] == "status":
            answer["reaches_leader"] = reaches_leader
        return {**answer, "promised": self._log.promised()}

    def _on_status(self, message: Message) -> Message:  # noqa: ARG002
        return {"position": self._log.position(), "leader": self.leader, "leads": self.is_leader}

    def _on_append(self, message: Message) -> Message:
        entries = msgspec.convert(message["entries"], list[Entry], strict=False)
        leading = entries[-1].epoch
        if leading < self._log.promised():
            return {"stored": False}
        if leading > self._log.promised():
            self._log.promise(leading)
        for entry in entries:
            position = self._log.position()
            if entry.revision <= position.revision and self._log.epoch_of(entry.revision) == entry.epoch:
                continue  # sent again, because an answer of ours was lost
            if entry.revision != position.revision + 1 or entry.before != position.epoch:
                return {"stored": False, "position": position}
            self._log.append(entry)
        return {"stored": True}

    def _on_entries(self, message: Message) -> Message:
        theirs = read_position(message["position"])
        mine = self._log.position()
        if theirs == mine:
            return {"same": True}
        if theirs.revision < mine.revision and self._log.epoch_of(theirs.revision) == theirs.epoch:
            entries = self._log.after(theirs.revision, parts.SIZE)
            if entries is not None:
                return {"entries": entries, "more": entries[-1].position != mine}
        return self._offered.begin(self._log)

    def _on_part(self, message: Message) -> Message:
        return self._offered.part(read_position(message["position"]), int(message["offset"]))

    def _on_promise(self, message: Message) -> Message:
        epoch = promised_in({"promised": message["epoch"]})
        if epoch <= self._log.promised():
            return {"granted": False, "position": self._log.position()}
        self._log.promise(epoch)
        return {"granted": True, "position": self._log.position()}

    def readmit(self, member: str, position: Position) -> Procedure[bool]:
        """On the leader, with its turn: mark *member* as back if it is where the leader is."""
        if not self.is_leader:
            return False
        if position != self._log.position():
            return False
        if not self._log.members().get(member, False):
            return True
        entry = self._append(self._log.marked([], [member]))
        away = yield from self._push(entry)
        return member not in away


def _append_message(entries: Sequence[Entry]) -> Message:
    return {"kind": "append", "entries": list(entries)}


def _meant(answer: Message | None) -> TypeGuard[Message]:
    """Whether that is an answer: a member may know us for none of its own, or may have failed to answer."""
    return answer is not None and "stranger" not in answer and "error" not in answer


def _unstored(members: Sequence[str]) -> str:
    return f"node {', '.join(repr(name) for name in sorted(members))} did not store it."


def _stored(answer: Message | None) -> bool:
    return answer is not None and bool(answer.get("stored"))
