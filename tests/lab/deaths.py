"""What dies of a node in the middle of something that two nodes do together, and how it lives again."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.lab.node import Node

HERE, THERE = 0, 1
"""The node that has the machine, and the other one, by their places among the nodes."""


def kill(node: Node) -> Callable[[], None]:
    """Its daemon; systemd starts it again."""
    node.kill()
    return lambda: None


def power(node: Node) -> Callable[[], None]:
    """Its power."""
    node.power_off()
    return node.boot


def link(node: Node) -> Callable[[], None]:
    """The cluster's network."""
    node.cut()
    return node.heal


def libvirtd(node: Node) -> Callable[[], None]:
    """libvirt, until somebody starts it again."""
    node.succeed("systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd")
    return lambda: node.succeed("systemctl start libvirtd.socket libvirtd") and None


def hang(node: Node) -> Callable[[], None]:
    """Its daemon, which keeps all its connections."""
    node.freeze()
    return node.thaw


class Death(NamedTuple):
    """What dies on which node, and what is to be done for it to live again."""

    node: int
    of: Callable[[Node], Callable[[], None]]


DEATHS = {
    "the daemon here": Death(HERE, kill),
    "the daemon there": Death(THERE, kill),
    "the power here": Death(HERE, power),
    "the power there": Death(THERE, power),
    "the link": Death(THERE, link),
    "libvirtd here": Death(HERE, libvirtd),
    "libvirtd there": Death(THERE, libvirtd),
    "the daemon here hangs": Death(HERE, hang),
    "the daemon there hangs": Death(THERE, hang),
}
