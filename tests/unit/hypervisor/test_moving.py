"""What libvirt is asked for once, and remembered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mcvirtd.hypervisor.keeper import Call, Link
from mcvirtd.hypervisor.libvirt_moving import MovingHypervisor

CAPABILITIES = (
    "<capabilities><host><secmodel><model>dac</model><baselabel type='kvm'>+{0}:+{0}</baselabel></secmodel></host>"
    "</capabilities>"
)


class Connection:
    """libvirtd, which runs its guests as *user*."""

    def __init__(self, user: int) -> None:
        self.user = user
        self.asked = 0

    def getCapabilities(self) -> str:
        self.asked += 1
        return CAPABILITIES.format(self.user)


class Rig(MovingHypervisor):
    """Asks whatever `link` is now."""

    link: Link

    @contextmanager
    def _asking(self, *_: Any, **__: Any) -> Iterator[Call]:
        yield Call(self.link, self.link.conn)


def test_who_guests_run_as_is_asked_once_for_each_libvirtd() -> None:
    rig, one, other, none = Rig("test:", "n1"), Connection(107), Connection(64055), Any
    rig.link = Link(one, none)  # type: ignore[arg-type]
    assert [rig.guests_user() for _ in range(3)] == [(107, 107)] * 3
    assert one.asked == 1
    # It was started again, with other settings.
    rig.link = Link(other, none)  # type: ignore[arg-type]
    assert [rig.guests_user() for _ in range(2)] == [(64055, 64055)] * 2
    assert other.asked == 1
