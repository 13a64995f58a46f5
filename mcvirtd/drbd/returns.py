"""Notices what those wait for who could not finish something with the other side of a resource."""

from __future__ import annotations

from collections.abc import Callable

from mcvirt.types.drbd import ResourceState
from mcvirtd.drbd.reader import Reader
from mcvirtd.drbd.status import GAP, Event
from mcvirtd.state.records import FormerLegRecord, NodeRecord
from mcvirtd.state.store import Change, Store


class Returns:
    """Calls *attend*, which must be quick, when another side is back and says what it has, when a node is back, when
    this kernel is read (again), when a node's record has changed, as its address does, and when a node is to delete
    what it had.
    """

    def __init__(self, *, store: Store, reader: Reader) -> None:
        self.attend: Callable[[], object] = _nobody
        self._apart: set[str] = set()
        store.subscribe(self._on_change)
        reader.subscribe(self._on_event)

    def back(self, node: str) -> None:
        """The mcvirtd of *node* answers again."""
        del node
        self.attend()

    def _on_change(self, change: Change) -> None:
        if any(kind in (NodeRecord.kind, FormerLegRecord.kind) for kind, _ in change.puts):
            self.attend()

    def _on_event(self, event: Event, state: ResourceState | None) -> None:
        apart = state is not None and not (state.connected and state.peer_disk != "DUnknown")
        if event.verb == GAP or (not apart and event.resource in self._apart):
            self.attend()
        if apart:
            self._apart.add(event.resource)
        else:
            self._apart.discard(event.resource)


def _nobody() -> None:
    """Who attends is not known yet."""
