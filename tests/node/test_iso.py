"""ISO images by the command: sent, downloaded, listed, used and deleted."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.mcvirt_node import McvirtNode
from tests.node.witness import MIB, create, refused, until

SERVER = "192.0.2.1"
CONTENT = os.urandom(3 * MIB)


@pytest.fixture(scope="module")
def web(node: McvirtNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web server on the node's bridge: what it serves is no address of the node's own loopback."""
    directory = tmp_path_factory.mktemp("web")
    (directory / "net.iso").write_bytes(CONTENT)
    node.host.run(["ip", "address", "add", f"{SERVER}/24", "dev", "br0"])
    server = node.host.popen(
        [sys.executable, "-u", "-m", "http.server", "--bind", SERVER, "--directory", str(directory), "8000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert server.stdout is not None
    server.stdout.readline()
    yield f"http://{SERVER}:8000"
    server.terminate()
    server.wait(10)
    server.stdout.close()


def stored(node: McvirtNode) -> list[str]:
    return sorted(path.name for path in (node.state_dir / "iso").rglob("*") if path.is_file())


def test_add_list_and_delete(node: McvirtNode, tmp_path: Path) -> None:
    assert node.mcvirt("iso", "list").stdout == "No ISOs found\n"
    file = tmp_path / "disc.iso"
    file.write_bytes(CONTENT)
    assert "Successfully added ISO: disc.iso" in node.mcvirt("iso", "add", str(file), "--from-path").stderr
    assert node.mcvirt("iso", "list").stdout == "disc.iso\n"
    (image,) = node.json("iso", "list")
    assert image["sha256"] == hashlib.sha256(CONTENT).hexdigest() and image["size"] == len(CONTENT)
    assert (node.state_dir / "iso" / "disc.iso").read_bytes() == CONTENT
    refused(node, "iso", "add", str(file), says="already")
    refused(node, "iso", "add", str(tmp_path / "nosuch.iso"), says="can't be read")
    create(node, "iso1")
    node.mcvirt("update", "iso1", "--iso", "disc.iso")
    refused(node, "iso", "delete", "disc.iso", says="iso1")
    node.mcvirt("delete", "iso1")
    assert "Successfully removed iso: disc.iso" in node.mcvirt("iso", "delete", "disc.iso").stderr
    refused(node, "iso", "delete", "disc.iso", says="disc.iso")
    refused(node, "iso", "delete", "../state.db")
    assert stored(node) == []


def test_interrupted_upload_leaves_nothing(node: McvirtNode) -> None:
    code = (
        "from mcvirt_client.client import Client\n"
        "import os\n"
        "client = Client.connect()\n"
        "upload = client.isos.upload_begin('half.iso', 3 * 1024 * 1024)\n"
        "client.isos.upload_piece(upload.id, 0, bytes(1024 * 1024))\n"
        "print(client.isos.list())\n"
        "os._exit(0)\n"
    )
    assert node.python(code).stdout == "()\n"
    assert node.mcvirt("iso", "list").stdout == "No ISOs found\n"
    node.stop_daemon()
    node.start_daemon()
    assert stored(node) == []


def test_download(node: McvirtNode, web: str) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    node.mcvirt("iso", "add", f"{web}/net.iso", "--from-url", "--sha256", digest)
    assert json.loads(node.mcvirt("iso", "list", "--json").stdout)[0]["sha256"] == digest
    node.mcvirt("iso", "delete", "net.iso")
    refused(node, "iso", "add", f"{web}/net.iso", "--from-url", "--sha256", "0" * 64, status=1, says="SHA-256")
    refused(node, "iso", "add", f"{web}/nosuch.iso", "--from-url", status=1, says="404")
    refused(node, "iso", "add", f"http://{SERVER}:1/net.iso", "--from-url", status=1)
    assert stored(node) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1/x.iso", "http://[::1]/x.iso", "http://169.254.169.254/x.iso"])
def test_download_from_the_node_itself_is_refused(node: McvirtNode, url: str) -> None:
    refused(node, "iso", "add", url, "--from-url", says="nothing is downloaded from there")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x.iso", "http:///x.iso"])
def test_bad_address(node: McvirtNode, url: str) -> None:
    refused(node, "iso", "add", url, "--from-url")


def test_nothing_is_left_of_what_failed(node: McvirtNode) -> None:
    until(lambda: stored(node) == [], "an empty directory", within=5)
