"""Emptying this node, and filling it again: the contract DrainApi.

Every machine moves in a migration of its own, a task with the same checks, rights and settlement as any. What is here
is the plan, the order, and the memory: that a machine is to come back is stored before it goes, so that nothing is
forgotten whatever dies; one that turns out to have stayed is taken out again.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import msgspec

from mcvirt.api.drain import DrainApi
from mcvirt.errors import BadArgument, Conflict, Failed, McvirtError, MigrationFailed, Refused, TaskCancelled
from mcvirt.types.cluster import NodeInfo
from mcvirt.types.drain import Drain, DrainMove, DrainPlan, DrainReport
from mcvirt.types.migration import Migration, MigrationPlan
from mcvirt.types.task import TaskInfo
from mcvirt.types.vm import VmRow
from mcvirtd.cluster.errands import Errands
from mcvirtd.migration.drain_plans import DrainPlanner, migration
from mcvirtd.migration.planning import check_limits
from mcvirtd.state.records import Drained, DrainRecord, VmRecord
from mcvirtd.tasks.task import Progress, current_task, step
from mcvirtd.vm.ground import Ground

log = logging.getLogger(__name__)

TELL = "drain.tell"
MOST_AT_ONCE = 8


class Draining(DrainApi):
    """Of this node; calls for others are handed on to them. *errands* has a node do an operation, this one too."""

    def __init__(
        self,
        ground: Ground,
        errands: Errands,
        *,
        rows: Callable[[], Sequence[VmRow]],
        nodes: Callable[[], Sequence[NodeInfo]],
    ) -> None:
        self._store = ground.store
        self._journal = ground.journal
        self._locks = ground.locks
        self._node = ground.node
        self._errands = errands
        self._planner = DrainPlanner(ground.store, ground.node, look=self._look, rows=rows, nodes=nodes)
        ground.journal.register(TELL, self._tell)

    def plan(self, node: str, how: Drain) -> DrainPlan:  # noqa: ARG002 - the call has come to that node
        self._check_words(how)
        return self._planner.plan(how)

    def drain(self, node: str, how: Drain) -> DrainReport:  # noqa: ARG002
        self._check_words(how)
        with self._locks.hold(f"node:{self._node}", within=0), self._journal.transaction() as tx:
            tx.undo(TELL, back=how.back)
            # Before the look at other nodes: two that are emptied at the same time must not choose each other.
            with self._marked(how):
                plan = self._planner.plan(how)
                self._require(plan, how)
                report = self._report(plan, self._carry_out(plan, how))
            tx.keep()
            return report

    @contextmanager
    def _marked(self, how: Drain) -> Iterator[None]:
        """In the block, and if anything comes of it afterwards, too, nothing is to come to this node by itself."""
        new = self._store.get(DrainRecord, self._node) is None
        if new:
            with self._store.change() as change:
                change.put(change.get(DrainRecord, self._node) or DrainRecord(node=self._node))
        try:
            yield
        except McvirtError:
            if new and not how.back:
                try:
                    with current_task().shielded():
                        self._unmark(failed=True)
                except McvirtError as error:  # what is told is why nothing came of it
                    log.warning("node %s stays marked as emptied: %s", self._node, error)
            raise
        if how.back:
            self._unmark(failed=False)

    def _unmark(self, *, failed: bool) -> None:
        """Nothing is to be brought back, and what was moved is, or nothing was."""
        record = self._store.get(DrainRecord, self._node)
        here = any(vm.node == self._node for vm in self._store.all(VmRecord).values())
        if record is None or record.machines or (failed and not here):
            return
        with self._store.change() as change:
            record = change.get(DrainRecord, self._node)
            if record is not None and not record.machines:
                change.delete(DrainRecord, self._node)

    def warnings(self) -> tuple[str, ...]:
        """What operators should remember of this node."""
        record = self._store.get(DrainRecord, self._node)
        if record is None:
            return ()
        names = ", ".join(sorted(each.name for each in record.machines)) or "nothing"
        return (
            f"Node '{self._node}' was emptied, and other nodes that are do not move their machines here. `mcvirt node "
            f"drain {self._node} --return` ends that, and brings back: {names}.",
        )

    # --- checking -----------------------------------------------------------------------------------------------------

    def _check_words(self, how: Drain) -> None:
        if not 1 <= how.at_once <= MOST_AT_ONCE:
            raise BadArgument(what="--at-once", why=f"it is a number from 1 to {MOST_AT_ONCE}.")
        check_limits(how.bandwidth, how.deadline)
        if how.back and self._store.get(DrainRecord, self._node) is None:
            raise Conflict(text=f"Node '{self._node}' was not emptied, so there is nothing to bring back.")

    def _look(self, node: str, name: str, how: Migration) -> MigrationPlan:
        asked = {"name": name, "how": msgspec.to_builtins(how)}
        answer = self._errands.run(node, "migration.plan", asked, lambda info: None)  # noqa: ARG005
        return msgspec.json.decode(answer, type=MigrationPlan)

    def _require(self, plan: DrainPlan, how: Drain) -> None:
        if plan.ok or (how.partly and plan.moves):
            return
        where = f"come back to node '{self._node}'" if how.back else f"leave node '{self._node}'"
        reasons = " ".join(f"{each.name}: {each.reason}" for each in plan.staying)
        others = " --as-far-as-possible moves the others." if plan.moves else ""
        raise Conflict(
            text=f"Not all virtual machines can {where}, and nothing was changed. {reasons}{others}",
            left=[each.name for each in plan.staying],
        )

    # --- moving -------------------------------------------------------------------------------------------------------

    def _carry_out(self, plan: DrainPlan, how: Drain) -> dict[str, McvirtError]:
        """Move them; the errors of those that are left, by name."""
        self._begin(plan)
        failures: dict[str, McvirtError] = {}
        done: list[str] = []
        with step("Moving virtual machines", total=len(plan.moves)) as overall:

            def work(move: DrainMove) -> None:
                try:
                    self._move(move, how)
                except McvirtError as error:
                    log.warning("%s is not moved to node %s: %s", move.name, move.target, error)
                    failures[move.name] = error
                done.append(move.name)
                with suppress(TaskCancelled):
                    overall.at(len(done))

            with ThreadPoolExecutor(how.at_once, thread_name_prefix="drain") as pool:
                futures = [pool.submit(contextvars.copy_context().run, work, move) for move in plan.moves]
            for future in futures:
                future.result()
        return failures

    def _move(self, move: DrainMove, how: Drain) -> None:
        what = f"Moving {move.name} to node {move.target}{', online' if move.online else ''}"
        with step(what, total=move.size or None, unit="B") as progress:
            vm = self._store.get(VmRecord, move.name)
            if vm is None or vm.node != move.source:
                return  # somebody has deleted it, or moved it, meanwhile
            if not how.back:
                self._remember(move, vm)
            try:
                asked = {"name": move.name, "how": msgspec.to_builtins(migration(move, how))}
                self._errands.run(move.source, "migration.migrate", asked, lambda info: _show(info, progress))
            except (Refused, MigrationFailed, TaskCancelled):
                # What else may have happened, it can't be said here: it may be on the other node, or come to be there.
                if not how.back:
                    with current_task().shielded():
                        self._stayed(move.name)
                raise
            if how.back:
                with current_task().shielded():
                    self._forget(move.name)

    def _begin(self, plan: DrainPlan) -> None:
        with self._store.change() as change:
            record = change.get(DrainRecord, self._node) or DrainRecord(node=self._node)
            left = tuple(each for each in record.machines if each.name not in plan.gone)
            change.put(msgspec.structs.replace(record, machines=left))

    def _remember(self, move: DrainMove, vm: VmRecord) -> None:
        with self._store.change() as change:
            record = change.get(DrainRecord, self._node) or DrainRecord(node=self._node)
            others = tuple(each for each in record.machines if each.name != move.name)
            new = Drained(name=vm.name, uuid=vm.uuid, copied=move.copy_storage)
            change.put(msgspec.structs.replace(record, machines=(*others, new)))

    def _stayed(self, name: str) -> None:
        vm = self._store.get(VmRecord, name)
        if vm is None or vm.node == self._node:
            self._forget(name)

    def _forget(self, name: str) -> None:
        with self._store.change() as change:
            record = change.get(DrainRecord, self._node)
            if record is not None:
                left = tuple(each for each in record.machines if each.name != name)
                change.put(msgspec.structs.replace(record, machines=left))

    # --- the end ------------------------------------------------------------------------------------------------------

    def _report(self, plan: DrainPlan, failures: dict[str, McvirtError]) -> DrainReport:
        moved = tuple(move for move in plan.moves if move.name not in failures)
        if current_task().cancelled.is_set() and failures:
            by = f" by {current_task().cancelled_by}" if current_task().cancelled_by else ""
            names = [move.name for move in moved]
            after = f"{by}, after {', '.join(names)} had been moved"
            raise TaskCancelled(by=after if names else by, moved=names)
        left = {each.name: each.reason for each in plan.staying}
        left |= {name: str(error) for name, error in failures.items()}
        if not plan.back:
            here = (vm.name for vm in self._store.all(VmRecord).values() if vm.node == self._node)
            left |= {name: "it has come here meanwhile." for name in here if name not in left}
        if left:
            raise Failed(text=self._sentence(plan, moved, left), left=left, moved=[move.name for move in moved])
        record = self._store.get(DrainRecord, self._node)
        remembered = () if record is None else tuple(sorted(each.name for each in record.machines))
        return DrainReport(node=self._node, back=plan.back, moved=moved, remembered=remembered)

    def _sentence(self, plan: DrainPlan, moved: Sequence[DrainMove], left: dict[str, str]) -> str:
        where = f"came back to node '{self._node}'" if plan.back else f"left node '{self._node}'"
        reasons = " ".join(f"{name}: {reason}" for name, reason in sorted(left.items()))
        again = f"mcvirt node drain {self._node}{' --return' if plan.back else ''}"
        return f"{len(moved)} of {len(moved) + len(left)} virtual machines {where}. {reasons} `{again}` goes on."

    def _tell(self, back: bool) -> None:
        """What the task of an earlier process is said to have come to."""
        records = self._store.all(VmRecord).values()
        record = self._store.get(DrainRecord, self._node)
        remembered = {each.uuid for each in record.machines} if record is not None else set()
        if back:
            left = [vm.name for vm in records if vm.uuid in remembered and vm.node != self._node]
        else:
            left = [vm.name for vm in records if vm.node == self._node]
        again = f"`mcvirt node drain {self._node}{' --return' if back else ''}` goes on."
        names = f"Left to be moved: {', '.join(sorted(left))}." if left else "All that was to be moved is."
        current_task().conclude(f"{names} {again}", done=not left and not back)


def _show(info: TaskInfo, progress: Progress) -> None:
    """How far a migration is; that somebody cancels is the errand's to hear."""
    with suppress(TaskCancelled):
        progress.at(max((each.done for each in info.steps if each.unit == "B"), default=0))
