"""A deterministic world for the replication protocol: virtual time, a network that loses, delays and repeats, crashes.

The real `Replica` runs in it; only its log is kept in memory here, with what is on disk apart from what is not yet.
Everything that happens is drawn from one seed, so a schedule that fails is run again by its number.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from mcvirt.errors import McvirtError
from mcvirtd.state.order import Entry, Epoch, Message, Position, Snapshot
from mcvirtd.state.replicate import Ask, Procedure, Replica

_json = msgspec.json


class Disk:
    """What survives a crash. A write that was interrupted is there whole, or not at all."""

    def __init__(self, members: Sequence[str], leader: str) -> None:
        self.entries: dict[int, Entry] = {}
        self.promised = Epoch(1, leader)
        self.state: dict[str, Any] = {"members": dict.fromkeys(members, False), "values": []}
        self.position = Position(Epoch(1, leader), 0)
        self.epochs = [(Epoch(1, leader), 0)]
        self.aside: list[int] = []


class MemoryLog:
    """The log on a `Disk`."""

    def __init__(self, disk: Disk, keep: int) -> None:
        self.disk = disk
        self.keep = keep

    def position(self) -> Position:
        return self.disk.position

    def promised(self) -> Epoch:
        return self.disk.promised

    def promise(self, epoch: Epoch) -> None:
        assert epoch >= self.disk.promised, "a promise is never taken back"
        self.disk.promised = epoch

    def append(self, entry: Entry) -> None:
        position = self.disk.position
        assert entry.revision == position.revision + 1 and entry.before == position.epoch, "a hole in the log"
        assert entry.epoch >= position.epoch, "epochs never go back within a log"
        self.disk.entries[entry.revision] = entry
        self.disk.entries.pop(entry.revision - self.keep, None)
        self.disk.state = applied(self.disk.state, entry)
        if entry.epoch != position.epoch:
            self.disk.epochs.append((entry.epoch, entry.revision))
        self.disk.promised = max(self.disk.promised, entry.epoch)
        self.disk.position = entry.position

    def epoch_of(self, revision: int) -> Epoch | None:
        if revision > self.disk.position.revision:
            return None
        return next((epoch for epoch, first in reversed(self.disk.epochs) if first <= revision), None)

    def epochs(self) -> Sequence[tuple[Epoch, int]]:
        return list(self.disk.epochs)

    def after(self, revision: int, most: int | None = None) -> Sequence[Entry] | None:
        wanted = range(revision + 1, self.disk.position.revision + 1)
        if any(number not in self.disk.entries for number in wanted):
            return None
        found: list[Entry] = []
        for number in wanted:
            found.append(self.disk.entries[number])
            if most is not None and sum(len(entry.change) for entry in found) >= most:
                break
        return found

    def snapshot(self) -> str:
        return _json.encode(self.disk.state).decode()

    def replace(self, snapshot: Snapshot, kept_aside: Sequence[Entry], kept_whole: str | None) -> None:
        self.disk.aside += [_json.decode(entry.change).get("value") for entry in kept_aside]
        if kept_whole is not None:
            self.disk.aside += _json.decode(kept_whole)["values"]
        self.disk.entries = {}
        self.disk.epochs = list(snapshot.epochs)
        self.disk.state = _json.decode(snapshot.content)
        self.disk.position = snapshot.position

    def members(self) -> Mapping[str, bool]:
        return dict(self.disk.state["members"])

    def marked(self, away: Sequence[str], back: Sequence[str]) -> str:
        return _json.encode({"away": list(away), "back": list(back)}).decode()

    def promotion(self, leader: str, number: int, away: Sequence[str]) -> str:
        return _json.encode({"promoted": [number, leader], "away": list(away)}).decode()


def applied(state: dict[str, Any], entry: Entry) -> dict[str, Any]:
    """The configuration after *entry*: the values of all changes in their order, and who is away."""
    change = _json.decode(entry.change)
    members = dict(state["members"])
    for name in change.get("away", ()):
        members[name] = True
    for name in change.get("back", ()):
        members[name] = False
    if "promoted" in change:
        members[change["promoted"][1]] = False
    values = [*state["values"], change["value"]] if "value" in change else state["values"]
    return {"members": members, "values": values}


class Node:
    """One member: its disk, and, while it is up, its replica and what is under way there."""

    def __init__(self, world: World, name: str, disk: Disk) -> None:
        self.world = world
        self.name = name
        self.disk = disk
        self.up = True
        self.life = 0
        self.turn_taken = False
        self.replica = Replica(name, MemoryLog(disk, world.keep))

    def crash(self) -> None:
        self.up = False
        self.life += 1
        self.turn_taken = False

    def start(self) -> None:
        self.up = True
        self.replica = Replica(self.name, MemoryLog(self.disk, self.world.keep))


class World:
    """Nodes, links and the clock."""

    def __init__(self, seed: int, names: Sequence[str], keep: int = 1000, replica: type[Replica] = Replica) -> None:
        self.random = random.Random(seed)
        self.keep = keep
        self.now = 0.0
        self._order = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self.cut: set[frozenset[str]] = set()
        self.loss = 0.0
        self.nodes = {name: Node(self, name, Disk(names, names[0])) for name in names}
        self.replica_type = replica
        for node in self.nodes.values():
            node.replica = replica(node.name, MemoryLog(node.disk, keep))

    # --- time -------------------------------------------------------------------------------------------------------

    def at(self, delay: float, event: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (self.now + delay, self._order, event))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = until

    # --- network ----------------------------------------------------------------------------------------------------

    def reaches(self, one: str, other: str) -> bool:
        return frozenset((one, other)) not in self.cut and self.nodes[other].up

    def _lost(self, one: str, other: str) -> bool:
        return not self.reaches(one, other) or self.random.random() < self.loss

    def _delay(self) -> float:
        slow = self.random.random() < 0.05
        return self.random.uniform(0.5, 4.0) if slow else self.random.uniform(0.001, 0.05)

    def send(self, sender: str, to: str, message: Message, answer: Callable[[Message], None]) -> None:
        """Deliver a message, perhaps late, twice or never, and the answer likewise."""
        wire = _json.encode(message)

        def arrive() -> None:
            if self._lost(sender, to):
                return
            target = self.nodes[to]
            reply = _json.encode(
                target.replica.handle(sender, _json.decode(wire), reaches_leader=self.leads(to, target.replica.leader))
            )

            def back() -> None:
                if not self._lost(to, sender):
                    answer(_json.decode(reply))

            self.at(self._delay(), back)

        self.at(self._delay(), arrive)
        if self.random.random() < 0.05:
            self.at(self._delay() * 3, arrive)

    def leads(self, one: str, other: str) -> bool:
        return self.hears(one, other) and self.nodes[other].replica.is_leader

    def hears(self, one: str, other: str) -> bool:
        return one == other or self.reaches(one, other)

    # --- procedures -------------------------------------------------------------------------------------------------

    def drive(self, name: str, procedure: Procedure[Any], done: Callable[[Any, McvirtError | None], None]) -> None:
        """Run a procedure on a node; it ends without a word if the node crashes."""
        node = self.nodes[name]
        life = node.life

        def advance(answers: Mapping[str, Message | None] | None) -> None:
            if not node.up or node.life != life:
                return
            try:
                ask = next(procedure) if answers is None else procedure.send(answers)
            except StopIteration as stop:
                done(stop.value, None)
            except McvirtError as error:
                done(None, error)
            else:
                self._ask(name, ask, advance)

        advance(None)

    def _ask(self, name: str, ask: Ask, go_on: Callable[[Mapping[str, Message | None]], None]) -> None:
        answers: dict[str, Message | None] = dict.fromkeys(ask.messages)
        finished = False

        def finish() -> None:
            nonlocal finished
            if not finished:
                finished = True
                go_on(dict(answers))

        def heard(member: str) -> Callable[[Message], None]:
            def hear(answer: Message) -> None:
                answers[member] = answer
                if all(value is not None for value in answers.values()):
                    finish()

            return hear

        self.at(ask.within, finish)
        for member, message in ask.messages.items():
            self.send(name, member, message, heard(member))
        if not ask.messages:
            self.at(0.0, finish)
