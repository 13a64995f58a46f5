"""What a node that is gone said last of its side of a hard drive: that may be newer than what this node has.

Where DRBD's link was cut first, the other side went on alone, and could not always have this one know that it is old.
Its heartbeats said so for as long as they came.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from mcvirt.types.drbd import ResourceState
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.reader import Reader
from mcvirtd.drbd.status import Event
from mcvirtd.state.records import DiskRecord


class LastWords:
    """Those of other nodes to *node*: *said* gives the resources of one as it said last, *heard* when that was."""

    def __init__(
        self,
        *,
        node: str,
        reader: Reader,
        said: Callable[[str], Mapping[str, ResourceState]],
        heard: Callable[[str], float | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._said = said
        self._heard = heard
        self._clock = clock
        self._reader = reader
        self._connected: set[str] = set()
        self._met: dict[str, float] = {}
        reader.subscribe(self._on_event)

    def _on_event(self, event: Event, state: ResourceState | None) -> None:
        if state is None or not state.connected:
            self._connected.discard(event.resource)
        elif event.resource not in self._connected:
            self._connected.add(event.resource)
            self._met[event.resource] = self._clock()

    def ahead(self, record: DiskRecord) -> str:
        """That the other side may have what this one has not, in a sentence; '' if nothing was heard of that."""
        name, other = resource_name(record.id), next((node for node in record.nodes if node != self._node), "")
        state, word, heard = self._reader.state(name), self._said(other).get(name), self._heard(other)
        if word is None or heard is None or word.role != "Primary" or word.connected:
            return ""
        if (state is not None and state.connected) or self._met.get(name, heard) > heard:
            return ""  # they have met since
        return (
            f"node '{other}' said last that it used the disk without being connected with this node, and so it may "
            "have written what is not here. Where that is to be given up, --ignore-drbd goes on with the data of this "
            "node."
        )
