"""What a node does with its sides for another one."""

from __future__ import annotations

from typing import Any, cast

import pytest

from mcvirt.errors import BadArgument
from mcvirt.types.replica import LegCommand
from mcvirtd.drbd.local_legs import Legs
from mcvirtd.drbd.peer_legs import DrbdPeerService


class Commanded:
    def __init__(self) -> None:
        self.given: list[LegCommand] = []

    def command(self, disk: str, command: LegCommand) -> None:
        assert disk == "hd"
        self.given.append(command)


@pytest.mark.parametrize("command", list(LegCommand))
def test_brings_them_up_and_down_and_no_more(command: LegCommand) -> None:
    legs: Any = Commanded()
    service = DrbdPeerService(cast(Legs, legs))
    if command in (LegCommand.UP, LegCommand.DOWN, LegCommand.PAUSE_SYNC, LegCommand.RESUME_SYNC):
        service.leg_command("hd", command)
        assert legs.given == [command]
    else:
        with pytest.raises(BadArgument, match="is not done for another node"):
            service.leg_command("hd", command)
        assert legs.given == []
