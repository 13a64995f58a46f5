"""Serial consoles: taken over, ended with their machine, and the log that outlives them."""

from __future__ import annotations

from tests import guest
from tests.node.mcvirt_node import McvirtNode
from tests.node.witness import Screen, boot, create, furnish, refused


def test_console(node: McvirtNode) -> None:
    furnish(node, iso=True)
    with boot(node, "web1") as first:
        first.type("echo one\n")
        assert first.wait("echo").text == "one"
        with Screen(node, "web1") as second:  # takes it over
            assert first.ended() in (0, 1)
            second.type("echo two\n")
            assert second.wait("echo").text == "two"
            refused(node, "console", "web1", "--json", status=2, unchanged=False)
            second.type("poweroff\n")
            assert second.ended() == 0
    log = node.mcvirt("console", "web1", "--log").stdout
    assert [line.text for line in guest.lines(log, "echo")] == ["one", "two"]
    assert node.json("console", "web1", "--log")["log"].count("ready") == 1
    assert node.mcvirt("console", "web1", "--log", "--tail", "0").stdout == ""
    refused(node, "console", "web1", says="not running")


def test_log_of_a_machine_that_never_ran(node: McvirtNode) -> None:
    create(node, "new1")
    assert node.mcvirt("console", "new1", "--log").stdout == ""
