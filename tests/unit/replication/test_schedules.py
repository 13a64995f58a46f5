"""Thousands of random schedules through the real replication code.

Each schedule draws partitions, losses, delays, repetitions, crashes and promotions from a seed, while changes are asked
for on all members. When everything is whole again and quiet, these must hold:

1. All members have the same position, the same configuration, and nobody is away.
2. A change that was acknowledged stands; where an operator forced a promotion, it stands or is kept aside and shown.
   An operator's word that goes on without the leader alone, true or not, forces nothing: most of the others agree.
3. No change stands twice, and what stands has one order everywhere.
4. One place in the history (epoch, revision) never held two different changes, and so no epoch had two leaders.
5. A change that any member ever stored stands, or is kept aside: no divergence that is not reported.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
import pytest

from mcvirt.errors import McvirtError
from mcvirtd.state import parts
from mcvirtd.state.order import Entry, Position
from mcvirtd.state.replicate import Committed, Procedure, Replica
from tests.unit.replication.simulation import MemoryLog, World

SCHEDULES = int(os.environ.get("SCHEDULES", "300"))
BUSY = 60.0
QUIET = 120.0


class Broken(AssertionError):
    """An invariant does not hold."""


class Schedule:
    """One run of the world from a seed."""

    def __init__(
        self,
        seed: int,
        size: int,
        *,
        forced: bool,
        without_leader: bool = False,
        keep: int = 1000,
        replica: type[Replica] = Replica,
    ) -> None:
        self.names = [f"n{number}" for number in range(1, size + 1)]
        self.world = World(seed, self.names, keep, replica)
        self.random = self.world.random
        self.forced = forced
        self.without_leader = without_leader
        self.asked = 0
        self.acknowledged: set[int] = set()
        self.forced_once = False
        self.stored: set[int] = set()
        self.places: dict[tuple[Any, int], str] = {}
        for node in self.world.nodes.values():
            self._watch(node.replica._log)  # type: ignore[arg-type]

    def _watch(self, log: MemoryLog) -> None:
        append = log.append

        def watched(entry: Entry) -> None:
            place = (entry.epoch, entry.revision)
            if self.places.setdefault(place, entry.change) != entry.change:
                raise Broken(f"{place} holds two changes")
            change = msgspec.json.decode(entry.change)
            if "value" in change:
                self.stored.add(change["value"])
            append(entry)

        log.append = watched  # type: ignore[method-assign]

    def run(self) -> None:
        world = self.world
        for name in self.names:
            world.at(self.random.random(), lambda name=name: self._heartbeat(name))
        world.at(0.1, self._ask_for_a_change)
        world.at(1.0, self._trouble)
        world.run(BUSY)
        world.cut.clear()
        world.loss = 0.0
        for node in world.nodes.values():
            if not node.up:
                self._start(node.name)
        self._end_without_leader()
        world.run(BUSY + QUIET)
        self._check()

    def _end_without_leader(self) -> None:
        """What an operator does in the end: a promotion that died half-way leaves nobody leading."""
        self.world.at(10.0, self._end_without_leader)
        if not any(node.replica.is_leader for node in self.world.nodes.values()):
            self._promote(self.names[0], confirmed=len(self.names) == 2, everything_answers=True)

    # --- what goes on -----------------------------------------------------------------------------------------------

    def _ask_for_a_change(self) -> None:
        if self.world.now >= BUSY:
            return
        self.world.at(self.random.expovariate(4.0), self._ask_for_a_change)
        asking = self.random.choice(self.names)
        node = self.world.nodes[asking]
        if not node.up:
            return
        leader = self.world.nodes.get(node.replica.leader)
        if leader is None or not self.world.hears(asking, leader.name) or leader.turn_taken or not leader.up:
            return
        self.asked += 1
        value, life = self.asked, leader.life
        leader.turn_taken = True
        change = msgspec.json.encode({"value": value}).decode()
        silent = [name for name in self.names if not self.world.hears(leader.name, name)]
        without = [name for name in silent if self.without_leader and self.random.random() < 0.5][:1]
        procedure = leader.replica.order(change, leader.replica.position(), silent, without)

        def done(result: Any, error: McvirtError | None) -> None:
            if leader.life == life:
                leader.turn_taken = False
            if error is None and self.world.hears(asking, leader.name):
                self.acknowledged.add(value)

        self.world.drive(leader.name, procedure, done)

    def _heartbeat(self, name: str) -> None:
        world, node = self.world, self.world.nodes[name]
        world.at(self.random.uniform(0.8, 1.2), lambda: self._heartbeat(name))
        if not node.up:
            return
        for other in self.names:
            if other != name and world.hears(name, other):
                node.replica._hear({"promised": world.nodes[other].replica._log.promised()})
        leader = node.replica.leader
        if leader == name or not world.hears(name, leader) or getattr(node, "following", None) == node.life:
            return
        theirs = world.nodes[leader].replica
        away = theirs._log.members().get(name, False)
        if theirs.is_leader and (away or theirs.position() != node.replica.position()):
            node.following = node.life  # type: ignore[attr-defined]
            world.drive(name, self._follow(node.replica, leader), lambda *_: setattr(node, "following", None))

    def _follow(self, replica: Replica, leader: str) -> Procedure[Any]:
        yield from replica.catch_up(leader)
        self._readmit(leader, replica.name, replica.position())
        return None

    def _readmit(self, leader: str, member: str, position: Position) -> None:
        node = self.world.nodes[leader]
        if node.up and not node.turn_taken and self.world.hears(member, leader):
            node.turn_taken, life = True, node.life

            def done(*_: Any) -> None:
                if node.life == life:
                    node.turn_taken = False

            self.world.drive(leader, node.replica.readmit(member, position), done)

    def _promote(
        self, name: str, *, confirmed: bool, everything_answers: bool = False, without: Collection[str] = ()
    ) -> None:
        node = self.world.nodes[name]
        if not node.up or node.turn_taken:
            return
        node.turn_taken, life = True, node.life
        if confirmed and not everything_answers:
            self.forced_once = True

        def done(*_: Any) -> None:
            if node.life == life:
                node.turn_taken = False

        self.world.drive(name, node.replica.promote(confirmed=confirmed, without=without), done)

    def _start(self, name: str) -> None:
        node = self.world.nodes[name]
        node.start()
        node.replica = self.world.replica_type(name, MemoryLog(node.disk, self.world.keep))
        self._watch(node.replica._log)  # type: ignore[arg-type]

    def _trouble(self) -> None:
        world, draw = self.world, self.random
        if world.now >= BUSY:
            return
        world.at(draw.uniform(0.2, 4.0), self._trouble)
        kind = draw.choice(["cut", "cut", "heal", "heal", "crash", "start", "start", "loss", "promote", "isolate"])
        name = draw.choice(self.names)
        other = draw.choice([each for each in self.names if each != name])
        if kind == "cut":
            world.cut.add(frozenset((name, other)))
        elif kind == "heal":
            world.cut.discard(frozenset((name, other)))
        elif kind == "isolate":
            world.cut |= {frozenset((name, each)) for each in self.names if each != name}
        elif kind == "crash":
            world.nodes[name].crash()
        elif kind == "start" and not world.nodes[name].up:
            self._start(name)
        elif kind == "loss":
            world.loss = draw.choice([0.0, 0.0, 0.1, 0.4])
        elif kind == "promote" and self.without_leader:
            leader = world.nodes[name].replica.leader
            self._promote(name, confirmed=False, without=() if world.hears(name, leader) else (leader,))
        elif kind == "promote":
            self._promote(name, confirmed=self.forced and draw.random() < 0.5)

    # --- what must hold ---------------------------------------------------------------------------------------------

    def _check(self) -> None:
        nodes = list(self.world.nodes.values())
        positions = {node.disk.position for node in nodes}
        if len(positions) != 1:
            raise Broken(
                f"members are at different places: {[(n.name, n.disk.position, n.disk.promised) for n in nodes]}"
            )
        states = [node.disk.state for node in nodes]
        if any(state != states[0] for state in states):
            raise Broken(f"members have different configurations: {states}")
        if any(states[0]["members"].values()):
            raise Broken(f"somebody is still away: {states[0]['members']}")
        standing: Sequence[int] = states[0]["values"]
        if len(set(standing)) != len(standing):
            raise Broken(f"a change stands twice: {standing}")
        aside = {value for node in nodes for value in node.disk.aside}
        lost = self.stored - set(standing) - aside
        if lost:
            raise Broken(f"changes are gone without a word: {sorted(lost)}")
        gone = self.acknowledged - set(standing)
        if gone and not self.forced_once:
            raise Broken(f"acknowledged changes do not stand: {sorted(gone)}")


def run_all(first: int, size: int, count: int, **options: Any) -> int:
    """Run *count* schedules; returns how many changes were acknowledged. The failing seed is in the error."""
    acknowledged = 0
    for seed in range(first, first + count):
        schedule = Schedule(seed, size, **options)
        try:
            schedule.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {size} members, {options}: {error}") from error
        acknowledged += len(schedule.acknowledged)
    return acknowledged


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("forced", [False, True])
def test_random_schedules(size: int, forced: bool) -> None:
    acknowledged = run_all(1, size, SCHEDULES, forced=forced)
    print(f"{SCHEDULES} schedules, {size} members, forced={forced}: {acknowledged} changes acknowledged")
    assert acknowledged > SCHEDULES * 5, "hardly anything happened"


@pytest.mark.parametrize("size", [3, 5])
def test_going_on_without_the_leader_loses_nothing(size: int) -> None:
    assert run_all(30_000, size, SCHEDULES, forced=False, without_leader=True) > SCHEDULES * 5


@pytest.mark.parametrize("size", [2, 3])
def test_members_far_behind_get_a_snapshot(size: int) -> None:
    assert run_all(10_000, size, SCHEDULES // 3, forced=True, keep=5) > 0


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("keep", [5, 1000])
def test_what_does_not_go_into_a_message_goes_in_parts(size: int, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with snapshots and backlogs in parts of a few characters, which partitions and crashes come between."""
    monkeypatch.setattr(parts, "SIZE", 40)
    assert run_all(20_000, size, SCHEDULES // 6, forced=True, keep=keep) > 0


class AcknowledgesFirst(Replica):
    """Seeded mistake: success before the members have stored it."""

    def _push(self, entry: Entry, without: Collection[str] = ()) -> Procedure[list[str]]:
        return []
        yield


class StoresAnything(Replica):
    """Seeded mistake: a member stores changes of a leader that was replaced."""

    def _on_append(self, message: Any) -> Any:
        for each in message["entries"]:
            entry = msgspec.convert(each, Entry, strict=False)
            position = self._log.position()
            if entry.revision == position.revision + 1:
                log: Any = self._log
                log.disk.entries[entry.revision] = entry
                log.disk.position = entry.position
        return {"stored": True}


class ForgetsConflicts(Replica):
    """Seeded mistake: what a replaced leader had alone is thrown away."""

    def _replace(self, answer: Any) -> None:
        log: Any = self._log
        before = list(log.disk.aside)
        super()._replace(answer)
        log.disk.aside = before


class PassesOverEverybody(Replica):
    """Seeded mistake: who goes on without one member goes on without all that are silent."""

    def promote(self, *, confirmed: bool, planned: bool = False, without: Collection[str] = ()) -> Procedure[Committed]:
        return super().promote(confirmed=confirmed or bool(without), planned=planned)


@pytest.mark.parametrize("size", [3, 5])
def test_passing_over_who_was_not_named_is_found(size: int) -> None:
    with pytest.raises(AssertionError, match="acknowledged changes do not stand"):
        run_all(30_000, size, SCHEDULES, forced=False, without_leader=True, replica=PassesOverEverybody)


@pytest.mark.parametrize("mistake", [AcknowledgesFirst, StoresAnything, ForgetsConflicts])
def test_mistakes_are_found(mistake: type[Replica]) -> None:
    with pytest.raises(AssertionError):
        run_all(1, 3, 300, forced=True, replica=mistake)
        run_all(1, 3, 300, forced=False, replica=mistake)
