"""Enabling DRBD: first every node is looked at, then every node is made ready, then it is so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from mcvirt.errors import DrbdNotReady, McvirtError
from mcvirt.types.drbd import DrbdEnabled
from mcvirt.types.peer import DrbdOutlook
from mcvirtd.state.records import DrbdRecord, NodeRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.task import step
from mcvirtd.tasks.transaction import Journal

log = logging.getLogger(__name__)

UNPREPARE = "drbd.unprepare"
LOOK_WITHIN = 30.0
ACT_WITHIN = 30.0


class OnNode(Protocol):
    """One node, this one or another."""

    def outlook(self) -> DrbdOutlook: ...
    def prepare(self) -> str: ...
    def unprepare(self) -> None: ...


class Asked:
    """A node that is asked over the wire; every call raises NodeUnreachable if it does not answer."""

    def __init__(self, call: Callable[..., msgspec.Raw], node: str) -> None:
        self._call = call
        self._node = node

    def outlook(self) -> DrbdOutlook:
        return msgspec.json.decode(self._ask("drbd_outlook", LOOK_WITHIN), type=DrbdOutlook)

    def prepare(self) -> str:
        return msgspec.json.decode(self._ask("drbd_prepare", ACT_WITHIN), type=str)

    def unprepare(self) -> None:
        self._ask("drbd_unprepare", ACT_WITHIN)

    def _ask(self, operation: str, within: float) -> msgspec.Raw:
        return self._call(self._node, "peer", operation, {}, within)


class Enabling:
    """*on* gives what stands for a node."""

    def __init__(self, *, store: Store, journal: Journal, on: Callable[[str], OnNode]) -> None:
        self._store = store
        self._journal = journal
        self._on = on
        journal.register(UNPREPARE, self._unprepare)

    def enable(self) -> DrbdEnabled:
        """See the contract; in a task."""
        nodes = tuple(sorted(self._store.all(NodeRecord)))
        warnings = self._looked_at(nodes)
        aside: dict[str, str] = {}
        with self._journal.transaction() as tx:
            with step("Preparing the nodes", total=len(nodes)) as progress:
                for done, node in enumerate(nodes):
                    tx.undo(UNPREPARE, node=node)
                    if kept := self._on(node).prepare():
                        aside[node] = kept
                    progress.at(done + 1)
            with tx.commit() as change:
                before = change.get(DrbdRecord, "drbd") or DrbdRecord()
                if not before.enabled:
                    change.put(msgspec.structs.replace(before, enabled=True))
        return DrbdEnabled(nodes=nodes, kept_aside=aside, warnings=warnings)

    def _looked_at(self, nodes: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        """What works and could be better, by node; DrbdNotReady with what does not work on any of them."""
        faults: list[str] = []
        warnings: dict[str, tuple[str, ...]] = {}
        with step("Looking at the nodes", total=len(nodes)) as progress:
            for done, node in enumerate(nodes):
                try:
                    outlook = self._on(node).outlook()
                except McvirtError as error:
                    outlook = DrbdOutlook(faults=(f"it can't be asked: {error}",))
                faults += [f"Node '{node}': {fault}" for fault in outlook.faults]
                if outlook.warnings:
                    warnings[node] = outlook.warnings
                progress.at(done + 1)
        if faults:
            raise DrbdNotReady(reasons=" ".join(faults))
        return warnings

    def _unprepare(self, node: str) -> None:
        record = self._store.get(DrbdRecord, "drbd")
        if node in self._store.all(NodeRecord) and not (record is not None and record.enabled):
            self._on(node).unprepare()


def on_each(here: OnNode, node: str, call: Callable[..., msgspec.Raw]) -> Callable[[str], OnNode]:
    """What stands for each node: *here* for *node*, which is this one."""
    return lambda name: here if name == node else Asked(call, name)


def described(warnings: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Warnings as sentences."""
    return [f"Node '{node}': {text}" for node, texts in sorted(warnings.items()) for text in texts]
