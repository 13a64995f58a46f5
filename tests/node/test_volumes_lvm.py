"""Volumes of a real volume group, which these tests may empty; it needs a kernel with device-mapper."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcvirt.errors import DeadlinePassed, TaskCancelled, VolumeInUse, VolumeUnusable
from mcvirt.units import GIB, MIB
from mcvirtd.host import content, lvm
from mcvirtd.host.lvm_reports import UNWIPED
from mcvirtd.storage.lvm_volumes import LvmVolumes
from mcvirtd.storage.volumes import Volumes
from tests.unit.storage.volumes_contract import ID, NAME, BoundedContract, VolumesContract

GROUP = os.environ.get("MCVIRT_TEST_VOLUME_GROUP", "mcvirt-test")
POOL = "testpool"


if not Path("/dev/mapper/control").exists():
    pytest.skip("LVM can't work here: the kernel has no device-mapper", allow_module_level=True)
if GROUP not in lvm.volume_groups():
    pytest.skip(f"there is no volume group {GROUP}; MCVIRT_TEST_VOLUME_GROUP names one", allow_module_level=True)


def command(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def _clear() -> None:
    for name, volume in lvm.volumes(GROUP).items():
        if volume.pool in (None, POOL):
            command("lvremove", "-qq", "-y", f"{GROUP}/{name}")
    for tag in lvm.volume_group(GROUP).tags:
        lvm.tag_group(GROUP, remove=tag)


def _soil() -> None:
    """Leave old data all over the free space that the next volume will take."""
    command("lvcreate", "-qq", "-y", "-Wn", "-Zn", "-L", "64m", "-n", "soil", GROUP)
    with Path(f"/dev/{GROUP}/soil").open("r+b") as device:
        device.write(b"OLD!" * (16 * MIB))
        device.flush()
        os.fsync(device.fileno())
    command("lvremove", "-qq", "-y", f"{GROUP}/soil")


class LvmContract(VolumesContract):
    def dirty(self, volumes: Volumes) -> None:
        _soil()

    def test_size_is_rounded_to_extents(self, volumes: Volumes) -> None:
        assert volumes.create(NAME, 1) == volumes.size(NAME) == 4 * MIB

    def test_open_volume_is_neither_deleted_nor_deactivated(self, volumes: Volumes) -> None:
        volumes.create(NAME, 4 * MIB)
        with Path(volumes.activate(NAME)).open("rb"):
            with pytest.raises(VolumeInUse):
                volumes.delete(NAME)
            with pytest.raises(VolumeInUse):
                volumes.deactivate(NAME)
        volumes.delete(NAME)
        assert volumes.names() == []

    def test_open_volume_grows(self, volumes: Volumes) -> None:
        volumes.create(NAME, 4 * MIB)
        with Path(volumes.activate(NAME)).open("rb"):
            assert volumes.grow(NAME, 8 * MIB) == 8 * MIB

    def test_deactivated_volume_grows(self, volumes: Volumes) -> None:
        self.dirty(volumes)
        volumes.create(NAME, 4 * MIB)
        volumes.deactivate(NAME)
        volumes.grow(NAME, 8 * MIB)
        assert self.content(volumes, NAME) == bytes(8 * MIB)

    def test_missing_group_is_said(self) -> None:
        volumes = LvmVolumes("nogroup")
        assert volumes.check() == ["There is no volume group 'nogroup' on this node; `vgs` shows those that it has."]
        for call in (volumes.free, volumes.names, lambda: volumes.create(NAME, MIB), lambda: volumes.exists(NAME)):
            with pytest.raises(Exception, match="no volume group called 'nogroup'"):
                call()

    def test_mark_is_a_tag_of_the_group(self, volumes: Volumes) -> None:
        volumes.mark(ID)
        assert f"mcvirt.{ID}" in command("vgs", "--noheadings", "-o", "vg_tags", GROUP)

    def test_many_at_once(self, volumes: Volumes) -> None:
        threads = [threading.Thread(target=volumes.create, args=(f"disk{n}", 4 * MIB)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert volumes.names() == ["disk0", "disk1", "disk2", "disk3"]


class TestLvmThick(LvmContract, BoundedContract):
    @pytest.fixture
    def volumes(self) -> Iterator[Volumes]:
        _clear()
        yield LvmVolumes(GROUP)
        _clear()

    def test_wipe_is_cancelled_in_the_middle_and_leaves_nothing(self, volumes: Volumes) -> None:
        cancel = threading.Event()
        begun: list[int] = []

        def progress(done: int, total: int) -> None:
            begun.append(done)
            if done:
                cancel.set()

        free = volumes.free()
        with pytest.raises(TaskCancelled):
            volumes.create(NAME, 256 * MIB, progress=progress, cancel=cancel)
        assert begun == [0, 64 * MIB]
        assert (volumes.names(), volumes.free()) == ([], free)

    def test_growth_is_cancelled_in_the_middle_and_is_taken_back(self, volumes: Volumes) -> None:
        cancel = threading.Event()
        volumes.create(NAME, 4 * MIB)
        volumes.fill(NAME, [b"guest"])
        free = volumes.free()
        with pytest.raises(TaskCancelled):
            volumes.grow(NAME, 256 * MIB, progress=lambda done, total: cancel.set() if done else None, cancel=cancel)
        assert (volumes.size(NAME), volumes.free()) == (4 * MIB, free)
        assert lvm.volumes(GROUP)[NAME].tags == frozenset()
        assert self.content(volumes, NAME) == b"guest" + bytes(4 * MIB - 5)

    def test_volume_of_an_interrupted_create_is_kept_from_guests(self, volumes: Volumes) -> None:
        _soil()
        command("lvcreate", "-qq", "-y", "-Wn", "-Zn", "-L4m", "--addtag", UNWIPED + "0", "-n", NAME, GROUP)
        assert Path(volumes.path(NAME)).read_bytes() == b"OLD!" * MIB
        for refused in (volumes.activate, volumes.check_import, lambda name: volumes.copy(name, "copy")):
            with pytest.raises(VolumeUnusable, match="old data"):
                refused(NAME)
        volumes.delete(NAME)
        assert volumes.names() == []

    def test_interrupted_growth_is_finished_by_growing_again(self, volumes: Volumes) -> None:
        _soil()
        volumes.create(NAME, 4 * MIB)
        volumes.fill(NAME, [b"guest"])
        lvm.tag_volume(GROUP, NAME, add=f"{UNWIPED}{4 * MIB}")
        command("lvextend", "-qq", "-y", "-L12m", f"{GROUP}/{NAME}")
        with pytest.raises(VolumeUnusable, match="Grow it again"):
            volumes.activate(NAME)
        assert volumes.grow(NAME, 12 * MIB) == 12 * MIB
        assert self.content(volumes, NAME) == b"guest" + bytes(12 * MIB - 5)

    def test_zeros_are_written_where_the_kernel_can_not_zero(
        self, volumes: Volumes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(content, "_zero_by_kernel", lambda *_: False)
        _soil()
        volumes.create(NAME, 64 * MIB)
        assert self.content(volumes, NAME) == bytes(64 * MIB)

    def test_volume_with_snapshots_is_not_deleted_with_them(self, volumes: Volumes) -> None:
        volumes.create(NAME, 4 * MIB)
        command("lvcreate", "-qq", "-y", "-s", "-L4m", "-n", "backup", f"{GROUP}/{NAME}")
        with pytest.raises(VolumeUnusable, match="snapshots"):
            volumes.delete(NAME)
        assert volumes.names() == ["backup", NAME]
        volumes.delete("backup")
        volumes.delete(NAME)

    def test_wiping_is_fast_enough_to_be_worth_it(self, volumes: Volumes) -> None:
        begun = time.monotonic()
        volumes.create(NAME, GIB)
        assert time.monotonic() - begun < 60


class TestLvmThin(LvmContract):
    @pytest.fixture
    def volumes(self) -> Iterator[Volumes]:
        _clear()
        if POOL not in lvm.thin_pools(GROUP):
            command("lvcreate", "-qq", "-y", "-L256m", "--thinpool", POOL, GROUP)
        yield LvmVolumes(GROUP, POOL)
        _clear()
        command("lvremove", "-qq", "-y", f"{GROUP}/{POOL}")

    def test_volume_may_be_larger_than_its_pool(self, volumes: Volumes) -> None:
        free = volumes.free()
        assert volumes.create(NAME, 16 * GIB) == 16 * GIB
        assert volumes.free() == free
        volumes.fill(NAME, [b"x" * MIB] * 64)
        assert volumes.free() < free - 60 * MIB

    def test_pool_that_does_not_zero_is_refused(self, volumes: Volumes) -> None:
        command("lvchange", "-qq", "--zero", "n", f"{GROUP}/{POOL}")
        (said,) = volumes.check()
        assert f"lvchange --zero y {GROUP}/{POOL}" in said
        with pytest.raises(VolumeUnusable, match="does not zero"):
            volumes.create(NAME, MIB)
        command("lvchange", "-qq", "--zero", "y", f"{GROUP}/{POOL}")
        assert volumes.check() == []

    def test_pool_is_neither_a_volume_nor_deleted(self, volumes: Volumes) -> None:
        volumes.create(NAME, 4 * MIB)
        for kind in (volumes, LvmVolumes(GROUP)):
            assert not kind.exists(POOL)
            kind.delete(POOL)
        assert volumes.names() == [NAME]

    def test_volumes_outside_of_the_pool_are_others(self, volumes: Volumes) -> None:
        thick = LvmVolumes(GROUP)
        thick.create(NAME, 4 * MIB)
        assert volumes.names() == []
        volumes.delete(NAME)
        assert thick.names() == [NAME]
        with pytest.raises(VolumeUnusable, match=f"thin pool {POOL}"):
            volumes.check_import(NAME)
        with pytest.raises(Exception, match="already"):
            volumes.create(NAME, 4 * MIB)

    def test_missing_pool_is_said(self, volumes: Volumes) -> None:
        other = LvmVolumes(GROUP, "nopool")
        assert other.check() == [f"There is no thin pool 'nopool' in the volume group {GROUP}."]
        for call in (other.free, other.total, lambda: other.create(NAME, MIB)):
            with pytest.raises(Exception, match=r"no thin pool called '.*/nopool'"):
                call()


def test_lvm_says_what_it_says_within_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lvm, "WITHIN", 0.001)
    with pytest.raises(DeadlinePassed):
        lvm.volume_groups()
