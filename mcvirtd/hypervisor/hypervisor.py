"""The hypervisor of a node, as the rest of the daemon knows it."""

from __future__ import annotations

from mcvirtd.hypervisor.libvirt import Hypervisor

__all__ = ["Hypervisor"]
