"""What every kind of volumes promises; each kind runs these same tests."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mcvirt.errors import BadArgument, FileFailed, NoSpaceLeft, TaskCancelled, VolumeExists, VolumeNotFound
from mcvirt.units import MIB
from mcvirtd.storage.file_volumes import FileVolumes
from mcvirtd.storage.volumes import Volumes

ID = "sb-0123456789abcdef-0123456789abcdef01234567"
OTHER = "sb-fedcba9876543210-0123456789abcdef01234567"
NAME = "mcvirt-hd-1"


def space_taken(volumes: Volumes) -> int:
    """The bytes that volumes take, and no others: a file system has others who write to it."""
    if isinstance(volumes, FileVolumes):
        return sum(path.stat().st_blocks * 512 for path in Path(volumes.location).rglob("*"))
    return volumes.total() - volumes.free()


class VolumesContract:
    """Subclasses give the fixture *volumes*, an empty location, and may override ``content``."""

    def content(self, volumes: Volumes, name: str) -> bytes:
        """All that a guest would read."""
        path = Path(volumes.activate(name))
        return path.read_bytes()

    def dirty(self, volumes: Volumes) -> None:
        """Make sure that space about to be used holds old data, where that is possible."""

    def test_good_location_has_no_faults(self, volumes: Volumes) -> None:
        assert volumes.check() == []
        assert volumes.total() >= volumes.free() > 64 * MIB
        assert volumes.names() == []

    def test_new_volume_is_there_and_reads_as_zeros(self, volumes: Volumes) -> None:
        self.dirty(volumes)
        size = volumes.create(NAME, 8 * MIB)
        assert size == volumes.size(NAME) == 8 * MIB
        assert volumes.exists(NAME)
        assert volumes.names() == [NAME]
        assert self.content(volumes, NAME) == bytes(size)

    def test_size_is_rounded_up_and_told(self, volumes: Volumes) -> None:
        size = volumes.create(NAME, 5_000_001)
        assert 5_000_001 <= size <= 8 * MIB
        assert size % 512 == 0
        assert volumes.size(NAME) == size

    def test_create_does_not_touch_a_volume_that_exists(self, volumes: Volumes) -> None:
        volumes.create(NAME, 4 * MIB)
        volumes.fill(NAME, [b"old" * 100])
        with pytest.raises(VolumeExists, match=NAME):
            volumes.create(NAME, 8 * MIB)
        assert volumes.size(NAME) == 4 * MIB
        assert self.content(volumes, NAME)[:300] == b"old" * 100

    def test_cancelled_create_leaves_nothing(self, volumes: Volumes) -> None:
        taken, cancel = space_taken(volumes), threading.Event()
        cancel.set()
        with pytest.raises(TaskCancelled):
            volumes.create(NAME, 8 * MIB, cancel=cancel)
        assert volumes.names() == []
        assert not volumes.exists(NAME)
        assert space_taken(volumes) <= taken + 64 * 1024

    def test_progress_ends_at_the_total(self, volumes: Volumes) -> None:
        seen: list[tuple[int, int]] = []
        volumes.create(NAME, 8 * MIB)
        volumes.fill(NAME, [b"x" * MIB] * 8, progress=lambda done, total: seen.append((done, total)))
        assert seen[-1] == (8 * MIB, 8 * MIB)
        assert seen == sorted(seen)

    def test_delete_is_idempotent(self, volumes: Volumes) -> None:
        volumes.create(NAME, 4 * MIB)
        volumes.create("other", 4 * MIB)
        volumes.delete(NAME)
        volumes.delete(NAME)
        assert volumes.names() == ["other"]

    def test_grown_part_reads_as_zeros_and_the_rest_stays(self, volumes: Volumes) -> None:
        self.dirty(volumes)
        volumes.create(NAME, 4 * MIB)
        volumes.fill(NAME, [b"guest"])
        size = volumes.grow(NAME, 12 * MIB)
        assert size == volumes.size(NAME) == 12 * MIB
        assert self.content(volumes, NAME) == b"guest" + bytes(12 * MIB - 5)

    def test_growing_to_less_or_the_same_changes_nothing(self, volumes: Volumes) -> None:
        volumes.create(NAME, 8 * MIB)
        assert volumes.grow(NAME, 4 * MIB) == 8 * MIB
        assert volumes.grow(NAME, 8 * MIB) == 8 * MIB

    def test_cancelled_growth_leaves_the_old_size(self, volumes: Volumes) -> None:
        cancel = threading.Event()
        cancel.set()
        volumes.create(NAME, 4 * MIB)
        with pytest.raises(TaskCancelled):
            volumes.grow(NAME, 12 * MIB, cancel=cancel)
        assert volumes.size(NAME) == 4 * MIB
        volumes.activate(NAME)

    def test_what_does_not_exist_is_not_found(self, volumes: Volumes) -> None:
        for call in (volumes.size, volumes.activate, volumes.deactivate, volumes.check_import):
            with pytest.raises(VolumeNotFound, match=r"no volume called 'nothing'"):
                call("nothing")
        for refused in (
            lambda: volumes.grow("nothing", MIB),
            lambda: volumes.fill("nothing", [b"x"]),
            lambda: volumes.copy("nothing", "copy"),
        ):
            with pytest.raises(VolumeNotFound):
                refused()
        assert volumes.names() == []

    @pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "-x", "a b", "a\n", "x" * 101, "é", "a;b", "a\0"])
    def test_bad_names_are_refused_everywhere(self, volumes: Volumes, name: str) -> None:
        for call in (
            volumes.delete,
            volumes.exists,
            volumes.size,
            volumes.path,
            volumes.activate,
            volumes.check_import,
        ):
            with pytest.raises(BadArgument):
                call(name)
        with pytest.raises(BadArgument):
            volumes.create(name, MIB)

    @pytest.mark.parametrize("size", [0, -1, -512])
    def test_sizes_of_nothing_are_refused(self, volumes: Volumes, size: int) -> None:
        with pytest.raises(BadArgument):
            volumes.create(NAME, size)
        assert volumes.names() == []

    def test_path_is_known_before_the_volume(self, volumes: Volumes) -> None:
        path = volumes.path(NAME)
        volumes.create(NAME, 4 * MIB)
        assert volumes.activate(NAME) == volumes.path(NAME) == path

    def test_deactivated_volume_comes_back_with_its_data(self, volumes: Volumes) -> None:
        volumes.create(NAME, 4 * MIB)
        volumes.fill(NAME, [b"data"])
        volumes.deactivate(NAME)
        volumes.deactivate(NAME)
        assert self.content(volumes, NAME)[:4] == b"data"

    def test_fill_writes_what_a_guest_will_see(self, volumes: Volumes) -> None:
        volumes.create(NAME, 8 * MIB)
        chunks = [b"a" * 1000, bytes(MIB), b"b" * 3, b"", b"c" * MIB]
        assert volumes.fill(NAME, iter(chunks)) == sum(map(len, chunks))
        data = b"".join(chunks)
        assert self.content(volumes, NAME) == data + bytes(8 * MIB - len(data))

    def test_more_content_than_fits_is_refused(self, volumes: Volumes) -> None:
        volumes.create(NAME, 4 * MIB)
        with pytest.raises(FileFailed, match="more content"):
            volumes.fill(NAME, [b"x" * MIB] * 5)

    def test_copy_has_the_content_and_leaves_the_source(self, volumes: Volumes) -> None:
        volumes.create(NAME, 8 * MIB)
        volumes.fill(NAME, [b"x" * 5000, bytes(MIB), b"y" * 5000])
        before = self.content(volumes, NAME)
        seen: list[tuple[int, int]] = []
        assert volumes.copy(NAME, "copy", progress=lambda *at: seen.append(at)) == 8 * MIB
        assert self.content(volumes, "copy") == before == self.content(volumes, NAME)
        assert seen[-1][0] == seen[-1][1]
        with pytest.raises(VolumeExists):
            volumes.copy(NAME, "copy")
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(TaskCancelled):
            volumes.copy(NAME, "copy2", cancel=cancel)
        assert volumes.names() == ["copy", NAME]

    def test_own_volume_can_be_imported(self, volumes: Volumes) -> None:
        volumes.create(NAME, 4 * MIB)
        found = volumes.check_import(NAME)
        assert (found.size, found.format) == (4 * MIB, volumes.format)

    def test_marks_tell_whose_the_location_is(self, volumes: Volumes) -> None:
        assert volumes.marked_with() == frozenset()
        volumes.mark(ID)
        volumes.mark(ID)
        volumes.mark(OTHER)
        assert volumes.marked_with() == {ID, OTHER}
        assert volumes.names() == []
        volumes.unmark(ID)
        volumes.unmark(ID)
        assert volumes.marked_with() == {OTHER}
        volumes.unmark(OTHER)
        with pytest.raises(BadArgument):
            volumes.mark("../x")


class BoundedContract:
    """For kinds whose volumes take their space when they are made."""

    def test_too_large_volume_is_refused_and_leaves_nothing(self, volumes: Volumes) -> None:
        free = volumes.free()
        with pytest.raises(NoSpaceLeft, match=NAME):
            volumes.create(NAME, free + MIB)
        assert volumes.names() == []
        volumes.create(NAME, 4 * MIB)
        with pytest.raises(NoSpaceLeft):
            volumes.grow(NAME, free + MIB)
        assert volumes.size(NAME) == 4 * MIB
        volumes.activate(NAME)
