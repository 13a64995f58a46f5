"""Which minors and ports are taken, by the kernel, by sockets, and by files that somebody else has written."""

from __future__ import annotations

from pathlib import Path

from mcvirtd.host.drbd_numbers import device_size, minors_in_use, ports_in_use

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1E6D 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:0016 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
"""
FOREIGN = """
resource "db" {
    # device minor 99;
    on alpha { device /dev/drbd7 minor 7; disk /dev/vg/x; address ipv4 10.0.0.1:7800; meta-disk internal; }
    on beta { device minor 7; disk /dev/vg/x; address ipv6 [fe80::1]:7801; meta-disk internal; }
    volume 1 { device /dev/drbd12; }
}
"""


def test_minors(tmp_path: Path) -> None:
    for name in ("drbd0", "drbd3", "sda", "drbdx"):
        (tmp_path / "block" / name).mkdir(parents=True)
    (tmp_path / "drbd.d").mkdir()
    (tmp_path / "drbd.d/db.res").write_text(FOREIGN)
    (tmp_path / "drbd.conf").write_text("resource old { device /dev/drbd5; }\n")
    files = (tmp_path / "drbd.d", tmp_path / "drbd.conf")
    assert minors_in_use(tmp_path / "block", files) == {0, 3, 5, 7, 12}


def test_ports(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(TCP)
    (tmp_path / "db.res").write_text(FOREIGN)
    assert ports_in_use((tmp_path / "tcp", tmp_path / "tcp6"), (tmp_path,)) == {7789, 22, 7800, 7801}


def test_size(tmp_path: Path) -> None:
    (tmp_path / "drbd3").mkdir()
    (tmp_path / "drbd3/size").write_text("2048\n")
    assert device_size(3, tmp_path) == 2**20
    assert device_size(4, tmp_path) == 0


def test_nothing_there(tmp_path: Path) -> None:
    assert minors_in_use(tmp_path / "no", (tmp_path / "none",)) == frozenset()
    assert ports_in_use((tmp_path / "no",), (tmp_path / "none",)) == frozenset()
