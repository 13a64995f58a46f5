"""DRBD, as far as it is not about one hard drive."""

from __future__ import annotations

from mcvirt.api.drbd import DrbdApi
from mcvirt.types.drbd import Attached, DrbdEnabled, DrbdInfo
from mcvirtd.drbd.attaching import Attaching
from mcvirtd.drbd.enabling import Enabling
from mcvirtd.drbd.view import ReplicaView


class DrbdService(DrbdApi):
    """See the contract."""

    def __init__(self, *, enabling: Enabling, view: ReplicaView, attaching: Attaching) -> None:
        self._enabling = enabling
        self._view = view
        self._attaching = attaching

    def enable(self) -> DrbdEnabled:
        return self._enabling.enable()

    def list(self) -> tuple[DrbdInfo, ...]:
        return self._view.all()

    def attach(self, name: str, node: str | None = None, disk: int | None = None) -> tuple[Attached, ...]:
        return self._attaching.of_machine(name, node, disk)

    def attach_disk(self, disk: str, at: str, node: str | None = None) -> Attached:
        return self._attaching.of_disk(disk, at, node)
