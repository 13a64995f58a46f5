"""What is asked of LVM, and how its answers are read; the reports are those of LVM 2.03.16 with a real volume group."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mcvirt.errors import BadArgument, CommandFailed, NoSpace, VolumeNotFound
from mcvirtd.host import lvm, lvm_snapshots
from mcvirtd.host import lvm_commands as commands
from mcvirtd.host.lvm_reports import ThinPool, VolumeGroup, parse_groups, parse_thin_pools, parse_volumes
from mcvirtd.host.run import Output

GOLDEN = Path(__file__).parent / "golden"
VOLUMES = (GOLDEN / "lvs.json").read_text()
GROUPS = (GOLDEN / "vgs.json").read_text()


def test_volume_groups_are_read() -> None:
    assert parse_groups((GOLDEN / "vgs.json").read_text()) == {
        "vg0": VolumeGroup(
            size=8585740288,
            free=7465861120,
            extent=4194304,
            tags=frozenset({"mcvirt.sb-0123456789abcdef-0123456789abcdef01234567", "other"}),
            missing_devices=0,
            writable=True,
        )
    }


def test_volumes_are_read_without_pools() -> None:
    volumes = parse_volumes(VOLUMES)
    assert sorted(volumes) == ["backup", "snap", "thick", "thin", "unfinished"]
    assert (volumes["thick"].size, volumes["thick"].path, volumes["thick"].pool) == (8388608, "/dev/vg0/thick", None)
    assert (volumes["thin"].size, volumes["thin"].pool) == (50331648, "pool")
    assert volumes["thin"].tags == {"mcvirt.a", "mcvirt.b=5"}


def test_states_of_volumes_are_read() -> None:
    volumes = parse_volumes(VOLUMES)
    assert {name: (each.active, each.open, each.snapshots) for name, each in volumes.items()} == {
        "thick": (True, False, True),
        "backup": (True, False, False),
        "thin": (True, True, False),
        "snap": (False, False, False),
        "unfinished": (False, False, False),
    }
    assert volumes["unfinished"].unwiped_from == 4194304
    assert volumes["thick"].unwiped_from is None


def test_thin_pools_are_read() -> None:
    assert parse_thin_pools(VOLUMES) == {
        "pool": ThinPool(size=1073741824, data_percent=0.0, metadata_percent=11.04, zeroes=True),
        "lax": ThinPool(size=16777216, data_percent=0.0, metadata_percent=10.84, zeroes=False),
    }


def test_empty_and_broken_reports() -> None:
    assert parse_volumes((GOLDEN / "lvs-none.json").read_text()) == {}
    for text in ("", "{}", '{"report": [{"vg": [{"vg_name": "x"}]}]}', '{"report": 1}'):
        with pytest.raises(CommandFailed, match="not understood"):
            parse_groups(text)


POOLS = """{"report": [{"lv": [
{"lv_name":"pool", "lv_size":"42949672960", "lv_path":"", "lv_tags":"", "pool_lv":"", "lv_attr":"twi-aotz--",
 "data_percent":"25.00", "metadata_percent":"0.88", "vg_name":"vg0", "vg_size":"68715282432", "vg_free":"25669140480",
 "vg_extent_size":"4194304", "vg_tags":"mcvirt.x", "vg_missing_pv_count":"0", "vg_permissions":"writeable",
 "vg_exported":""}]}]}"""


def test_pools_and_their_group_are_one_report(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    reports = [POOLS]

    def answer(argv: list[str]) -> Output:
        asked.append(argv[0])
        return Output(stdout={"lvs": reports[0], "vgs": GROUPS}[argv[0]], stderr="", status=0)

    monkeypatch.setattr(lvm, "_run", answer)
    group, pools = lvm.group_and_pools("vg0")
    assert asked == ["lvs"]
    assert group is not None and group.tags == {"mcvirt.x"} and group.free == 25669140480 and group.writable
    assert list(pools) == ["pool"] and pools["pool"].free == 32212254720
    reports[0] = '{"report": [{"lv": []}]}'
    assert lvm.group_and_pools("vg0") == (parse_groups(GROUPS).get("vg0"), {})


def test_commands_are_exact() -> None:
    assert commands.create("vg0", "disk", 5_000_001, thin_pool=None, tags=["a.b"]) == [
        *("lvcreate", "-qq", "-y", "-Wn", "-Zn", "-L", "5000192b", "--addtag", "a.b", "-n", "disk", "vg0")
    ]
    assert commands.create("vg0", "disk", 1024, thin_pool="pool", tags=()) == [
        *("lvcreate", "-qq", "-y", "-V", "1024b", "--thinpool", "pool", "-n", "disk", "vg0")
    ]
    assert commands.remove("vg0", "disk") == ["lvremove", "-qq", "-y", "vg0/disk"]
    assert commands.extend("vg0", "disk", 1) == ["lvextend", "-qq", "-y", "-L", "512b", "vg0/disk"]
    assert commands.report_volumes("vg0", "disk")[-3:] == ["-S", 'lv_name="disk"', "vg0"]
    assert commands.tag_group("vg0", add="x", remove="y")[-5:] == ["--addtag", "x", "--deltag", "y", "vg0"]


@pytest.mark.parametrize("bad", ["", "-x", "a/b", 'a"b', "a b", "..", "a\n", "a,b", "x" * 101])
def test_no_bad_name_gets_into_a_command(bad: str) -> None:
    for build in (commands.remove, commands.activate, commands.deactivate, commands.report_volumes):
        for group, name in ((bad, "disk"), ("vg0", bad)):
            with pytest.raises(BadArgument):
                build(group, name)
    with pytest.raises(BadArgument):
        commands.create("vg0", "disk", 512, thin_pool=bad, tags=())


@pytest.mark.parametrize("tag", ["", "-x", "a,b", "a b", "@x", "a\n", "x" * 300])
def test_no_bad_tag_gets_into_a_command(tag: str) -> None:
    with pytest.raises(BadArgument):
        commands.create("vg0", "disk", 512, thin_pool=None, tags=[tag])


def test_room_is_needed_for_all_copies_together_and_for_none_in_a_thin_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = parse_volumes(VOLUMES)
    group = parse_groups(GROUPS)["vg0"]
    size, before = volumes["thick"].size, volumes["backup"].size
    free = [2 * size]
    monkeypatch.setattr(lvm, "volumes", lambda group: volumes)
    monkeypatch.setattr(lvm, "volume_group", lambda name: msgspec.structs.replace(group, free=free[0]))
    lvm_snapshots.check_room("vg0", {"a": "thick", "b": "thick"}, "n1")
    free[0] = 2 * size - 1
    with pytest.raises(NoSpace, match="thick and thick hold"):
        lvm_snapshots.check_room("vg0", {"a": "thick", "b": "thick"}, "n1")
    lvm_snapshots.check_room("vg0", {"a": "thick"}, "n1")
    free[0] = size - before  # what was kept by that name before goes first
    lvm_snapshots.check_room("vg0", {"backup": "thick"}, "n1")
    free[0] = 0
    lvm_snapshots.check_room("vg0", {"a": "thin"}, "n1")
    with pytest.raises(VolumeNotFound):
        lvm_snapshots.check_room("vg0", {"a": "thin", "b": "gone"}, "n1")
