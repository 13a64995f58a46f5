from __future__ import annotations

import hashlib

import pytest

from mcvirt.errors import BadArgument, NodeUnreachable
from mcvirt.types.storage import IsoInfo, UploadInfo
from mcvirt_client.upload import upload_iso
from tests.unit.cli.fake import Client, run_with


class Store:
    def __init__(self):
        self.data = b""

    def piece(self, upload, offset, data, node):
        assert offset == len(self.data)
        assert len(data) <= 4
        self.data += data
        return len(self.data)

    def finish(self, upload, sha256, node):
        assert hashlib.sha256(self.data).hexdigest() == sha256
        return IsoInfo(name="x.iso", size=len(self.data), sha256=sha256, node="n1")


def client_with(store, **answers):
    return Client(
        isos__upload_begin=UploadInfo(id="up-1", piece=4),
        isos__upload_piece=store.piece,
        isos__upload_finish=store.finish,
        **answers,
    )


@pytest.mark.parametrize("content", [b"", b"abc", b"abcd", b"0123456789"])
def test_pieces_arrive_in_order_with_their_checksum(tmp_path, content):
    (tmp_path / "x.iso").write_bytes(content)
    store = Store()
    seen = []
    client = client_with(store)
    info = upload_iso(client, str(tmp_path / "x.iso"), progress=lambda done, total: seen.append((done, total)))  # type: ignore[arg-type]
    assert store.data == content
    assert info.size == len(content)
    assert client.calls[0] == ("isos.upload_begin", ("x.iso", len(content), None), {})
    assert not content or seen[-1] == (len(content), len(content))


@pytest.mark.parametrize("error", [NodeUnreachable(node="n", reason="x"), KeyboardInterrupt()])
def test_what_fails_is_aborted_there(tmp_path, error):
    (tmp_path / "x.iso").write_bytes(b"0123456789")
    client = client_with(Store())
    client.answers["isos.upload_piece"] = error
    with pytest.raises(type(error)):
        upload_iso(client, str(tmp_path / "x.iso"), node="n2")  # type: ignore[arg-type]
    assert client.calls[-1] == ("isos.upload_abort", ("up-1", "n2"), {})


def test_files_that_are_none_are_refused_before_anything_is_sent(tmp_path):
    client = Client()
    for path in (tmp_path, tmp_path / "missing", "/dev/zero"):
        with pytest.raises(BadArgument):
            upload_iso(client, str(path))  # type: ignore[arg-type]
    assert client.calls == []


def test_the_command_sends_paths_and_names_addresses(tmp_path, capsys):
    (tmp_path / "x.iso").write_bytes(b"0123")
    store = Store()
    assert run_with(client_with(store), f"iso add {tmp_path}/x.iso --from-path") == 0
    assert store.data == b"0123"
    assert "Successfully added ISO: x.iso" in capsys.readouterr().err
    client = Client(isos__add_url=IsoInfo(name="y.iso", size=1, sha256="", node="n1"))
    assert run_with(client, "iso add https://h/y.iso") == 0
    assert client.calls == [("isos.add_url", ("https://h/y.iso", None, None, None), {})]
