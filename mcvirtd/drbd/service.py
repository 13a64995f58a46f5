"""DRBD, as far as it is not about one hard drive."""

from __future__ import annotations

from mcvirt.api.drbd import DrbdApi
from mcvirt.types.drbd import DrbdEnabled, DrbdInfo
from mcvirtd.drbd.enabling import Enabling
from mcvirtd.drbd.view import ReplicaView


class DrbdService(DrbdApi):
    """See the contract."""

    def __init__(self, *, enabling: Enabling, view: ReplicaView) -> None:
        self._enabling = enabling
        self._view = view

    def enable(self) -> DrbdEnabled:
        return self._enabling.enable()

    def list(self) -> tuple[DrbdInfo, ...]:
        return self._view.all()
