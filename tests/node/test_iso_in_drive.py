"""Images and the drives that have them: one that is in use is not deleted, and one that is gone is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.node.mcvirt_node import McvirtNode

IMAGE = "boot.iso"


@pytest.fixture
def drive(sim_node: McvirtNode) -> Iterator[McvirtNode]:
    """A node with an image and a virtual machine `web1`."""
    file = sim_node.directory / IMAGE
    file.write_bytes(b"image")
    sim_node.mcvirt("iso", "add", str(file), "--from-path")
    sim_node.mcvirt("create", "web1", "--memory", "64", "--cpu-count", "1")
    yield sim_node
    sim_node.mcvirt("stop", "web1", check=False)
    sim_node.mcvirt("delete", "web1", "--yes")
    sim_node.mcvirt("iso", "delete", IMAGE, check=False)


@pytest.mark.parametrize("argv", [("update", "web1", "--iso", "boot"), ("start", "web1", "--iso", "boot")])
def test_an_image_named_without_its_ending_is_in_use_all_the_same(drive: McvirtNode, argv: tuple[str, ...]) -> None:
    drive.mcvirt(*argv)
    assert drive.json("info", "web1")["iso"] == IMAGE
    assert drive.json("iso", "list")[0]["used_by"] == ["web1"]
    refused = drive.mcvirt("iso", "delete", IMAGE, check=False)
    assert refused.returncode == 3 and "virtual machine 'web1'" in refused.stderr


def test_an_image_that_was_deleted_by_hand_is_told_and_can_be_ejected(drive: McvirtNode) -> None:
    drive.mcvirt("update", "web1", "--iso", IMAGE)
    (drive.state_dir / "iso" / IMAGE).unlink()
    before = drive.json("info", "web1")
    refused = drive.mcvirt("update", "web1", "--cpu-count", "2", check=False)
    assert refused.returncode == 3 and "mcvirt update web1 --iso" in refused.stderr
    assert drive.json("info", "web1") == before
    drive.mcvirt("update", "web1", "--iso")
    drive.mcvirt("update", "web1", "--cpu-count", "2")
    assert drive.json("info", "web1")["cpu_count"] == 2
