"""drbd, and what info shows of it."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import msgspec
import pytest

from mcvirt.types.drbd import DrbdEnabled, DrbdInfo, DrbdLeg, ResourceState
from mcvirt.types.vm import StorageType
from tests.unit.cli.fake import Client, run_with
from tests.unit.cli.test_commands import INFO, ROW

GOOD = ResourceState(
    name="mcvirt-hd-1",
    minor=4,
    role="Primary",
    peer_role="Secondary",
    connection="Connected",
    replication="Established",
    disk="UpToDate",
    peer_disk="UpToDate",
)
OTHER = msgspec.structs.replace(GOOD, role="Secondary", peer_role="Primary")


def drive(here: ResourceState | None = GOOD, there: ResourceState | None = OTHER, **fields: object) -> DrbdInfo:
    legs = (DrbdLeg(node="n1", state=here), DrbdLeg(node="n2", state=there))
    values = {
        "disk": "hd-1",
        "vm": "web1",
        "slot": 1,
        "resource": "mcvirt-hd-1",
        "minor": 4,
        "port": 7792,
        "legs": legs,
    }
    return DrbdInfo(**{**values, **fields})


def listed(made: DrbdInfo, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    assert run_with(Client(drbd__list=(made,)), "drbd list") == 0
    said = capsys.readouterr()
    return said.out, said.err


def test_enable_says_what_it_kept_and_what_could_be_better(capsys: pytest.CaptureFixture[str]) -> None:
    done = DrbdEnabled(nodes=("n1", "n2"), kept_aside={"n2": "/etc/drbd.d/x.before"}, warnings={"n1": ("LVM looks.",)})
    assert run_with(Client(drbd__enable=done), "drbd enable") == 0
    said = capsys.readouterr()
    text = said.out + said.err
    assert "Successfully enabled DRBD" in text
    assert "Node n2: the configuration that DRBD had before is kept as /etc/drbd.d/x.before." in text
    assert "Warning: node n1: LVM looks." in text


def test_both_sides_are_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    verified = datetime(2030, 1, 2, 3, 4).astimezone()
    out, err = listed(drive(verified=verified, verification="clean"), capsys)
    for word in (
        *("mcvirt-hd-1", "web1 (1)", "7792", "n1: Primary, n2: Secondary", "Connected", "n1: UpToDate, n2: UpToDate"),
        *("In Sync", "2030-01-02 03:04 clean"),
    ):
        assert word in out
    assert err == ""


def test_when_it_was_verified_is_told_in_local_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TZ", "EST5")
    time.tzset()
    try:
        out, _ = listed(drive(verified=datetime(2030, 1, 2, 3, 4, tzinfo=UTC), verification="clean"), capsys)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert "2030-01-01 22:04 clean" in out


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (
            drive(msgspec.structs.replace(GOOD, replication="VerifyS", done=12.34, seconds_left=70)),
            "Verifying 12.3%, 70 s",
        ),
        (drive(there=msgspec.structs.replace(OTHER, replication="SyncTarget", disk="Inconsistent")), "Syncing"),
        (drive(out_of_sync=8192), "Out of Sync (8 KiB)"),
        (drive(failed=True), "Out of Sync"),
        (drive(msgspec.structs.replace(GOOD, split_brain=True, connection="StandAlone")), "Split brain"),
        (drive(None, None), "Unknown"),
        (drive(there=msgspec.structs.replace(OTHER, disk="Outdated")), "Out of Sync"),
    ],
)
def test_the_state_in_a_word(made: DrbdInfo, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert word in listed(made, capsys)[0]


def test_what_is_wrong_is_said_and_where_nothing_is_known_nothing_is_claimed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, err = listed(drive(there=None), capsys)
    assert "n2: Down" in out
    assert "web1: Hard drive 1: node 'n2' does not have its DRBD resource mcvirt-hd-1 up." in err
    legs = (DrbdLeg(node="n1", state=GOOD), DrbdLeg(node="n2", known=False))
    assert "n2: Unknown" in listed(drive(legs=legs), capsys)[0]
    legs = (DrbdLeg(node="n1", state=GOOD), DrbdLeg(node="n2", state=OTHER, age=9))
    assert "n2: Secondary (9 s ago)" in listed(drive(legs=legs), capsys)[0]


def test_json_has_all_that_the_table_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(Client(drbd__list=(drive(),)), "drbd list --json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["legs"][0]["state"]["role"] == "Primary"


def test_list_warns_of_machines_whose_drives_have_split(capsys: pytest.CaptureFixture[str]) -> None:
    row = msgspec.structs.replace(ROW, trouble=("Hard drive 1: its two sides have split.",))
    assert run_with(Client(vms__list=(row,)), "list") == 0
    said = capsys.readouterr()
    assert "split" not in said.out
    assert "Warning: web1: Hard drive 1: its two sides have split." in said.err


def test_info_shows_the_sides_of_replicated_drives_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(Client(vms__info=INFO), "info web1") == 0
    assert "DRBD Role" not in capsys.readouterr().out
    disk = msgspec.structs.replace(INFO.disks[0], storage_type=StorageType.DRBD, replica=drive())
    assert run_with(Client(vms__info=msgspec.structs.replace(INFO, disks=(disk,))), "info web1") == 0
    out = capsys.readouterr().out
    assert "DRBD Role" in out and "n2" in out and "In Sync" in out


def test_verify_with_nothing_named_says_what_can_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(Client(), "verify") == 2
    assert "Name one virtual machine, the ID of one hard drive, or one of --all" in capsys.readouterr().err
