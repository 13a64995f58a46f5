"""The hypervisor that this node's settings name, and what its guests run with."""

from __future__ import annotations

import logging
from typing import cast

from mcvirtd.hypervisor.accelerator import Setting
from mcvirtd.hypervisor.moving import MovingVerbs
from mcvirtd.settings import Libvirt
from mcvirtd.vm.design import AcceleratorOfNode

log = logging.getLogger(__name__)
_CONNECT_WITHIN = 10.0


def hypervisor_of(settings: Libvirt, node: str, *, simulate: bool) -> tuple[MovingVerbs, AcceleratorOfNode]:
    """Connected, if it could be in a moment; it is tried on and on. With *simulate* it is in memory."""
    if simulate:
        from mcvirtd.hypervisor.simulated import SimulatedHypervisor

        return SimulatedHypervisor(node), AcceleratorOfNode(lambda: ("tcg", "everything is simulated"))
    from mcvirtd.hypervisor.libvirt_moving import MovingHypervisor

    hypervisor = MovingHypervisor(settings.uri, node)
    if not hypervisor.connect(_CONNECT_WITHIN):
        log.warning("libvirt can't be reached at %s; it is tried again and again", settings.uri)
    return hypervisor, AcceleratorOfNode(lambda: hypervisor.accelerator(cast(Setting, settings.accelerator)))
