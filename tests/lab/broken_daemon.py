"""A test that is to fail, on a daemon that was broken on purpose: test_lab.py looks at how that is told."""

from __future__ import annotations

from tests.lab.node import Node


def test_machines_are_listed(node: Node) -> None:
    node.succeed("sed -i '2i raise RuntimeError(\"broken on purpose\")' /usr/local/lib/mcvirt/current/bin/mcvirtd")
    node.run("systemctl restart mcvirtd")
    node.mcvirt("list")
