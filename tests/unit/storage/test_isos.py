"""ISO images: the directory, uploads, deletion."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcvirt.errors import AlreadyExists, BadArgument, ChecksumWrong, Conflict, FileFailed, InUse, NotFound
from mcvirt.rpc.transport import UPLOAD_PIECE
from mcvirt.types.storage import IsoInfo
from mcvirt.units import GIB, MIB
from mcvirtd.auth.caller import Caller, called_by
from mcvirtd.host import files
from mcvirtd.storage import uploads as uploads_module
from mcvirtd.storage.fetching import Fetcher
from mcvirtd.storage.iso_service import IsoService
from mcvirtd.storage.isos import RESERVE, IsoLibrary
from mcvirtd.storage.uploads import IDLE, MOST, MOST_OF_USER, Uploads
from tests.unit.storage.world import WITHIN, World

DATA = os.urandom(100_000)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def library(world: World) -> IsoLibrary:
    made = IsoLibrary(world.state)
    made.prepare()
    return made


@pytest.fixture
def uploads(library: IsoLibrary, clock: Clock) -> Iterator[Uploads]:
    made = Uploads(library, clock=clock)
    yield made
    made.close()


@pytest.fixture
def isos(world: World, library: IsoLibrary, uploads: Uploads) -> Iterator[IsoService]:
    service = IsoService(
        store=world.store,
        journal=world.journal,
        locks=world.locks,
        node="n1",
        library=library,
        uploads=uploads,
        fetcher=Fetcher(),
    )
    with called_by(Caller(user="ann")):
        yield service


def send(isos: IsoService, name: str = "debian", data: bytes = DATA, digest: str | None = None) -> IsoInfo:
    begun = isos.upload_begin(name, len(data))
    for offset in range(0, len(data), 30_000):
        there = isos.upload_piece(begun.id, offset, data[offset : offset + 30_000])
        assert there == min(len(data), offset + 30_000)
    return isos.upload_finish(begun.id, digest or sha(data))


def hidden(library: IsoLibrary, prefix: str = ".upload-") -> list[str]:
    return [path.name for path in library.directory.iterdir() if path.name.startswith(prefix)]


class TestDirectory:
    def test_others_may_reach_the_images_and_nothing_else(self, world: World, library: IsoLibrary) -> None:
        assert stat.S_IMODE(world.state.stat().st_mode) == 0o711
        assert stat.S_IMODE(library.directory.stat().st_mode) == 0o755

    def test_what_a_crash_left_is_cleared_away(self, isos: IsoService, library: IsoLibrary) -> None:
        image = send(isos)
        for name in (".upload-0123", ".download-4567", ".gone.iso.sha256"):
            (library.directory / name).write_bytes(b"x")
        library.prepare()
        assert sorted(path.name for path in library.directory.iterdir()) == [".debian.iso.sha256", "debian.iso"]
        assert library.list()[0].sha256 == image.sha256

    def test_list_has_images_only(self, isos: IsoService, library: IsoLibrary) -> None:
        directory = library.directory
        (directory / "b.ISO").write_bytes(b"12345")
        (directory / "a.iso").write_bytes(b"123")
        (directory / "notes.txt").write_bytes(b"")
        (directory / "dir.iso").mkdir()
        (directory / "link.iso").symlink_to("/etc/passwd")
        (directory / ".hidden.iso").write_bytes(b"")
        assert [(each.name, each.size, each.sha256) for each in isos.list()] == [("a.iso", 3, ""), ("b.ISO", 5, "")]
        assert [each.node for each in isos.list("n1")] == ["n1", "n1"]
        with pytest.raises(NotFound):
            library.path("link")

    def test_other_node(self, isos: IsoService) -> None:
        with pytest.raises(NotFound, match="'n9'"):
            isos.list("n9")

    def test_path(self, isos: IsoService, library: IsoLibrary) -> None:
        send(isos)
        assert library.path("debian") == library.path("debian.iso") == str(library.directory / "debian.iso")
        with pytest.raises(NotFound, match=r"ISO image called 'nope\.iso'"):
            library.path("nope")
        with pytest.raises(BadArgument):
            library.path("../state.db")

    def test_digest_of_a_file_that_was_replaced_is_unknown(self, isos: IsoService, library: IsoLibrary) -> None:
        send(isos)
        Path(library.path("debian")).write_bytes(b"something else")
        assert isos.list()[0].sha256 == ""


class TestUpload:
    def test_whole(self, isos: IsoService, library: IsoLibrary) -> None:
        image = send(isos)
        assert (image.name, image.size, image.sha256, image.node) == ("debian.iso", len(DATA), sha(DATA), "n1")
        assert isos.list() == (image,)
        path = Path(library.path("debian"))
        assert path.read_bytes() == DATA
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert hidden(library) == []

    def test_what_is_arriving_is_roots_alone_and_not_listed(self, isos: IsoService, library: IsoLibrary) -> None:
        isos.upload_begin("debian", 100)
        (part,) = hidden(library)
        assert stat.S_IMODE((library.directory / part).stat().st_mode) == 0o600
        assert isos.list() == ()

    def test_pieces_come_in_order(self, isos: IsoService) -> None:
        begun = isos.upload_begin("debian", 10)
        assert begun.piece == UPLOAD_PIECE
        assert isos.upload_piece(begun.id, 0, b"12345") == 5
        for offset in (0, 4, 6, -1, 10):
            with pytest.raises(Conflict, match="begins at 5") as raised:
                isos.upload_piece(begun.id, offset, b"1")
            assert raised.value.received == 5
        with pytest.raises(BadArgument, match="beyond the 10 bytes"):
            isos.upload_piece(begun.id, 5, b"678901")
        assert isos.upload_piece(begun.id, 5, b"67890") == 10
        assert isos.upload_finish(begun.id, sha(b"1234567890").upper()).size == 10

    def test_too_long_a_piece(self, isos: IsoService) -> None:
        begun = isos.upload_begin("debian", 2 * UPLOAD_PIECE)
        with pytest.raises(BadArgument, match="is the most"):
            isos.upload_piece(begun.id, 0, bytes(UPLOAD_PIECE + 1))
        assert isos.upload_piece(begun.id, 0, bytes(UPLOAD_PIECE)) == UPLOAD_PIECE

    def test_unfinished_can_go_on(self, isos: IsoService) -> None:
        begun = isos.upload_begin("debian", 10)
        isos.upload_piece(begun.id, 0, b"12345")
        with pytest.raises(Conflict, match="5 of 10 bytes"):
            isos.upload_finish(begun.id, sha(b"1234567890"))
        isos.upload_piece(begun.id, 5, b"67890")
        isos.upload_finish(begun.id, sha(b"1234567890"))

    def test_wrong_digest_drops_it(self, isos: IsoService, library: IsoLibrary) -> None:
        with pytest.raises(ChecksumWrong, match=sha(DATA)):
            send(isos, digest="0" * 64)
        assert isos.list() == ()
        assert hidden(library) == []

    @pytest.mark.parametrize("digest", ["", "0" * 63, "g" * 64])
    def test_malformed_digest(self, isos: IsoService, digest: str) -> None:
        begun = isos.upload_begin("debian", 1)
        isos.upload_piece(begun.id, 0, b"1")
        with pytest.raises(BadArgument, match="64 hex digits"):
            isos.upload_finish(begun.id, digest)
        isos.upload_finish(begun.id, sha(b"1"))

    def test_never_overwrites(self, isos: IsoService, library: IsoLibrary) -> None:
        send(isos)
        with pytest.raises(AlreadyExists, match=r"already an ISO image called .debian\.iso"):
            isos.upload_begin("debian.iso", 1)
        begun = isos.upload_begin("other", 1)
        isos.upload_piece(begun.id, 0, b"1")
        (library.directory / "other.iso").write_bytes(b"put there by hand")
        with pytest.raises(AlreadyExists, match=r"other\.iso"):
            isos.upload_finish(begun.id, sha(b"1"))
        assert (library.directory / "other.iso").read_bytes() == b"put there by hand"

    @pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a\nb", "x" * 201, "ä"])
    def test_bad_names(self, isos: IsoService, name: str) -> None:
        with pytest.raises(BadArgument, match="ISO name"):
            isos.upload_begin(name, 1)

    @pytest.mark.parametrize("size", [0, -1, 2**60])
    def test_bad_sizes(self, isos: IsoService, size: int) -> None:
        with pytest.raises(BadArgument, match="size of the image"):
            isos.upload_begin("debian", size)

    def test_space_that_is_promised_is_not_promised_twice(
        self, isos: IsoService, library: IsoLibrary, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        space = files.Space(total=10 * GIB, free=RESERVE + GIB)
        monkeypatch.setattr(files, "space", lambda path: space)
        with pytest.raises(Conflict, match="1 GiB more"):
            isos.upload_begin("big", GIB + 1)
        begun = isos.upload_begin("one", GIB - 10)
        with pytest.raises(Conflict, match="10 B more"):
            isos.upload_begin("two", 11)
        isos.upload_begin("three", 10)
        isos.upload_abort(begun.id)
        isos.upload_begin("two", 11)

    def test_belongs_to_who_began_it(self, isos: IsoService) -> None:
        begun = isos.upload_begin("debian", 1)
        with called_by(Caller(user="bob")):
            for operation in (
                lambda: isos.upload_piece(begun.id, 0, b"1"),
                lambda: isos.upload_finish(begun.id, sha(b"1")),
                lambda: isos.upload_abort(begun.id),
            ):
                with pytest.raises(NotFound, match="upload"):
                    operation()
        isos.upload_piece(begun.id, 0, b"1")

    def test_same_name_twice(self, isos: IsoService) -> None:
        isos.upload_begin("debian", 1)
        with pytest.raises(Conflict, match="being uploaded already"):
            isos.upload_begin("debian.iso", 1)

    def test_limits(self, isos: IsoService) -> None:
        begun = [isos.upload_begin(f"a{number}", 1) for number in range(MOST_OF_USER)]
        with pytest.raises(Conflict, match="one user"):
            isos.upload_begin("more", 1)
        for number in range(MOST - MOST_OF_USER):
            with called_by(Caller(user=f"user{number // MOST_OF_USER}")):
                isos.upload_begin(f"b{number}", 1)
        with called_by(Caller(user="bob")), pytest.raises(Conflict, match="a node takes"):
            isos.upload_begin("more", 1)
        isos.upload_abort(begun[0].id)
        with called_by(Caller(user="bob")):
            isos.upload_begin("more", 1)

    def test_abort(self, isos: IsoService, library: IsoLibrary) -> None:
        begun = isos.upload_begin("debian", 1)
        isos.upload_abort(begun.id)
        assert hidden(library) == []
        with pytest.raises(NotFound):
            isos.upload_piece(begun.id, 0, b"1")

    def test_full_disk_can_be_tried_again(self, isos: IsoService, monkeypatch: pytest.MonkeyPatch) -> None:
        begun = isos.upload_begin("debian", 10)

        def torn(descriptor: int, data: bytes) -> None:
            os.write(descriptor, data[:2])
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(files, "write_all", torn)
            with pytest.raises(FileFailed):
                isos.upload_piece(begun.id, 0, b"1234567890")
        assert isos.upload_piece(begun.id, 0, b"abcdefghij") == 10
        assert isos.upload_finish(begun.id, sha(b"abcdefghij")).size == 10


class TestIdle:
    def test_dropped_when_idle(self, isos: IsoService, uploads: Uploads, library: IsoLibrary, clock: Clock) -> None:
        quiet, busy = isos.upload_begin("quiet", 10), isos.upload_begin("busy", 10)
        clock.now += IDLE - 1
        uploads.drop_idle()
        isos.upload_piece(busy.id, 0, b"1")
        clock.now += 2
        uploads.drop_idle()
        with pytest.raises(NotFound, match="ten minutes"):
            isos.upload_piece(quiet.id, 0, b"1")
        assert isos.upload_piece(busy.id, 1, b"2") == 2
        assert len(hidden(library)) == 1

    def test_dropped_by_itself(self, library: IsoLibrary) -> None:
        import time

        uploads = Uploads(library, clock=time.monotonic, idle=0.2)
        uploads.begin("debian", 10, "ann")
        uploads.begin("fedora", 10, "ann")
        deadline = time.monotonic() + WITHIN
        while hidden(library) and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        assert hidden(library) == []
        uploads.close()

    def test_close_drops_all(self, library: IsoLibrary, clock: Clock) -> None:
        uploads = Uploads(library, clock=clock)
        uploads.begin("debian", 10, "ann")
        uploads.close()
        assert hidden(library) == []
        with pytest.raises(Conflict, match="about to end"):
            uploads.begin("debian", 10, "ann")

    def test_flushes_on_the_way(self, isos: IsoService, monkeypatch: pytest.MonkeyPatch) -> None:
        flushed: list[int] = []
        monkeypatch.setattr(uploads_module, "_FLUSH", MIB)
        monkeypatch.setattr(os, "fdatasync", flushed.append)
        begun = isos.upload_begin("debian", 3 * MIB)
        for number in range(3):
            isos.upload_piece(begun.id, number * MIB, bytes(MIB))
        assert len(flushed) == 3


class TestDelete:
    def test_delete(self, isos: IsoService, library: IsoLibrary) -> None:
        send(isos)
        isos.delete("debian")
        assert list(library.directory.iterdir()) == []
        with pytest.raises(NotFound):
            isos.delete("debian")

    def test_refused_while_in_a_drive(self, isos: IsoService, world: World) -> None:
        send(isos)
        world.vm("web1", iso="debian.iso")
        world.vm("web2", iso="debian.iso", node=None)
        world.vm("far", iso="debian.iso", node="n2")
        assert isos.list()[0].used_by == ("web1", "web2")
        with pytest.raises(InUse, match="'web1', virtual machine 'web2'"):
            isos.delete("debian")
        world.vm("web1", iso=None)
        world.vm("web2", iso="other.iso")
        isos.delete("debian")

    @pytest.mark.parametrize("name", ["../state.db", "", "a/b"])
    def test_bad_names(self, isos: IsoService, name: str) -> None:
        with pytest.raises(BadArgument):
            isos.delete(name)


def test_pieces_from_many_threads_never_mix(isos: IsoService, uploads: Uploads) -> None:
    """Two clients that believe to own the same upload: each byte comes from one of them, and the digest holds."""
    begun = isos.upload_begin("debian", 50_000)
    gate = threading.Barrier(4)
    taken: list[tuple[int, bytes]] = []

    def client(letter: bytes, refused: Callable[[], None] = lambda: None) -> None:
        gate.wait()
        at = 0
        while at < 50_000:
            try:
                there = uploads.piece(begun.id, at, letter * 1000, "ann")
                taken.append((at, letter))
                at = there
            except Conflict as error:
                at = error.received

    threads = [threading.Thread(target=client, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)
    content = b"".join(letter * 1000 for _, letter in sorted(taken))
    assert isos.upload_finish(begun.id, sha(content)).size == 50_000
