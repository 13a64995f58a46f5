"""The files that DRBD reads, and whether LVM leaves its devices alone."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from mcvirt.errors import CommandFailed
from mcvirtd.drbd.config import MARK, Common, Leg, Resource, global_common_text
from mcvirtd.host import drbd, lvm_filter
from mcvirtd.host.run import Output
from tests.unit.drbd.recorded import existing


def test_a_foreign_file_is_kept_aside_and_put_back(tmp_path: Path) -> None:
    path = tmp_path / "global_common.conf"
    path.write_text("common { }\n")
    aside = drbd.write_common(Common(), path)
    assert aside == tmp_path / "global_common.conf.before-mcvirt"
    assert aside.read_text() == "common { }\n"
    assert path.read_text().startswith(MARK)
    assert drbd.write_common(Common(), path) is None
    assert drbd.write_common(Common(algorithm="sha1"), path) is None, "our own file was kept aside"
    drbd.restore_common(path)
    assert path.read_text() == "common { }\n"
    assert not aside.exists()
    drbd.write_common(Common(), path)
    path.write_text("common { } # of an upgrade\n")
    assert drbd.write_common(Common(), path) == tmp_path / "global_common.conf.replaced-by-mcvirt"
    drbd.restore_common(path)
    assert path.read_text() == "common { }\n", "the first is the one that was there before"
    drbd.restore_common(path)
    assert path.read_text() == "common { }\n", "a file that is not ours was taken away"


def test_where_there_was_no_file_there_is_none_again(tmp_path: Path) -> None:
    path = tmp_path / "global_common.conf"
    assert drbd.write_common(Common(), path) is None
    drbd.restore_common(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ('include "drbd.d/global_common.conf";\ninclude "drbd.d/*.res";\n', []),
        ('include "/DIR/drbd.d/global_common.conf";\n include drbd.d/*.res;\n', []),
        ('include "drbd.d/*";\n', []),
        ('# include "drbd.d/*.res";\ninclude "drbd.d/global_common.conf";\n', ["*.res"]),
        ("global { }\n", ["global_common.conf", "*.res"]),
    ],
)
def test_what_drbdadm_would_not_find_is_said(tmp_path: Path, text: str, lacks: list[str]) -> None:
    path = tmp_path / "drbd.conf"
    path.write_text(text.replace("/DIR", str(tmp_path)))
    said = drbd.include_faults(path)
    assert [f'include "drbd.d/{name}"' in one for name, one in zip(lacks, said, strict=True)] == [True] * len(lacks)
    path.unlink()
    assert "can't be read" in drbd.include_faults(path)[0]


def test_the_file_of_a_resource_is_for_root_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    legs = [
        Leg(node=f"n{number}", address=f"10.0.0.{number}", data="/dev/vg0/a", metadata="/dev/vg0/b")
        for number in (1, 2)
    ]
    made = Resource(name="mcvirt-hd-1", minor=1, port=7789, secret="s" * 32, local=legs[0], peer=legs[1])
    drbd.write_resource(made, tmp_path)
    path = tmp_path / "mcvirt-hd-1.res"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert f'on "{drbd.host_name()}"' in path.read_text()
    assert drbd.resource_files(tmp_path) == ("mcvirt-hd-1",)
    there: list[str] = []
    monkeypatch.setattr(drbd.lvm, "volume", lambda group, name: f"{group}/{name}" if name in there else None)
    assert not drbd.has_volumes("mcvirt-hd-1", tmp_path)
    there.append("b")  # and is not active
    assert drbd.has_volumes("mcvirt-hd-1", tmp_path)
    there.clear()
    path.write_text(path.read_text().removeprefix(MARK))
    assert drbd.has_volumes("mcvirt-hd-1", tmp_path), "it is not ours"
    drbd.remove_resource("mcvirt-hd-1", tmp_path)
    drbd.remove_resource("mcvirt-hd-1", tmp_path)
    assert drbd.has_volumes("mcvirt-hd-1", tmp_path), "nobody can know"
    assert drbd.resource_files(tmp_path) == ()


def test_what_drbdadm_says_of_a_failed_connection_does_not_give_the_secret_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = (
        "mcvirt-hd-1: Failure: (102) Local address(port) already in use. Command 'drbdsetup-84 connect mcvirt-hd-1 "
        "ipv4:10.0.0.1:7789 ipv4:10.0.0.2:7789 --protocol=C --shared-secret=verysecretverysecret' ended with code 10"
    )

    def fail(*_: object, **__: object) -> None:
        raise CommandFailed(program="drbdadm", status=10, output=said)

    monkeypatch.setattr(drbd, "run", fail)
    with pytest.raises(CommandFailed, match="already in use") as failed:
        drbd.connect("mcvirt-hd-1")
    assert "verysecret" not in f"{failed.value} {failed.value.fields} {failed.value.__cause__}"
    assert "--shared-secret=..." in str(failed.value)
    assert failed.value.__suppress_context__


def test_a_side_that_is_alone_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "??: Failure: (162) Invalid configuration request additional info from kernel: unknown connection Command "
        "'drbdsetup-84 disconnect ipv4:10.9.0.2:7789 ipv4:10.9.0.1:7789' terminated with exit code 10"
    )

    def fail(*_: object, **__: object) -> None:
        raise CommandFailed(program="drbdadm", status=10, output=said)

    monkeypatch.setattr(drbd, "run", fail)
    drbd.disconnect("mcvirt-hd-1")
    said = "mcvirt-hd-1: Failure: (162) Invalid configuration request additional info from kernel: unknown resource"
    with pytest.raises(CommandFailed):
        drbd.disconnect("mcvirt-hd-1")


def test_a_side_that_is_alone_allows_no_two_primaries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    legs = [
        Leg(node=f"n{number}", address=f"10.0.0.{number}", data="/dev/vg0/a", metadata="/dev/vg0/b")
        for number in (1, 2)
    ]
    made = Resource(name="mcvirt-hd-1", minor=1, port=7789, secret="s" * 32, local=legs[0], peer=legs[1])
    drbd.write_resource(made, tmp_path)
    monkeypatch.setattr(drbd, "resource_path", lambda name: tmp_path / f"{name}.res")
    said = "??: Failure: (162) Invalid configuration request additional info from kernel: unknown connection"

    def fail(*_: object, **__: object) -> None:
        raise CommandFailed(program="drbdsetup", status=10, output=said)

    monkeypatch.setattr(drbd, "run", fail)
    drbd.two_primaries("mcvirt-hd-1", False)
    with pytest.raises(CommandFailed):
        drbd.two_primaries("mcvirt-hd-1", True)
    said = "??: Failure: (139) Can not clear allow_two_primaries as both sides are Primary"
    with pytest.raises(CommandFailed):
        drbd.two_primaries("mcvirt-hd-1", False)


def test_what_the_kernel_can_not_do_just_now_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "mcvirt-hd-1: State change failed: (-18) In transient state, retry after next state change additional info "
        "from kernel: failed to disconnect"
    )
    failures = 2

    def fail(*_: object, **__: object) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise CommandFailed(program="drbdsetup", status=11, output=said)

    monkeypatch.setattr(drbd, "run", fail)
    drbd.down("mcvirt-hd-1")
    assert failures == 0
    failures = 10**9
    monkeypatch.setattr(drbd, "TRANSIENT_WITHIN", 0.0)
    with pytest.raises(CommandFailed, match="In transient state"):
        drbd.down("mcvirt-hd-1")


DEFAULT = 'global_filter=["a|.*|"]\nfilter=["a|.*|"]\nuse_devicesfile=0\n'


@pytest.mark.parametrize(
    ("config", "alone"),
    [
        (DEFAULT, False),
        ("", False),
        ('global_filter=["r|^/dev/drbd|"]\nfilter=["a|.*|"]\n', True),
        ('global_filter=["a|.*|"]\nfilter=["r|/dev/drbd.*|","a|.*|"]\n', True),
        ('global_filter=["a|^/dev/sd|","r|.*|"]\n', True),
        ('global_filter=["a|.*|","r|^/dev/drbd|"]\n', False),
        ('global_filter=["r|^/dev/drbd[0-9]+$|"]\n', False),
        ('global_filter=["r(/dev/drbd.*)"]\n', True),
        ('global_filter=["r/drbd/"]\n', True),
        (DEFAULT.replace("file=0", "file=1"), True),
        ('global_filter=["r|*|"]\n', False),
    ],
)
def test_lvm_is_known_to_leave_drbd_alone(config: str, alone: bool) -> None:
    assert lvm_filter.leaves_alone(config) is alone


def kernel_says(monkeypatch: pytest.MonkeyPatch, answers: dict[str, str | None]) -> list[list[str]]:
    """What each program of *answers*, by its second word, prints; None: it fails. The result is what is run."""
    done: list[list[str]] = []

    def run(argv: list[str], **_: object) -> Output:
        done.append(argv)
        said = answers.get(argv[1], "")
        if said is None:
            raise CommandFailed(program=argv[0], status=10, output="(158) Unknown resource")
        return Output(stdout=said, stderr="", status=0)

    monkeypatch.setattr(drbd, "run", run)
    return done


def test_a_resource_is_asked_of_the_kernel_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "\n".join((*existing("mcvirt-hd-1", minor=7), "exists -"))
    done = kernel_says(monkeypatch, {"events2": said, "status": None})
    state = drbd.state("mcvirt-hd-1")
    assert state is not None and (state.minor, state.role, state.both_good) == (7, "Secondary", True)
    assert done == [["drbdsetup", "events2", "--now", "--statistics", "mcvirt-hd-1"]]
    kernel_says(monkeypatch, {"events2": None, "status": None})
    assert drbd.state("mcvirt-hd-none") is None
    kernel_says(monkeypatch, {"events2": None, "status": "mcvirt-hd-1 role:Primary"})
    with pytest.raises(CommandFailed):
        drbd.state("mcvirt-hd-1")


def test_a_rate_is_set_back_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "global_common.conf"
    assert drbd.most_rate(path) is None
    drbd.write_common(Common(most_rate=1024**3), path)
    assert drbd.most_rate(path) == 1024**3
    monkeypatch.setattr(drbd, "most_rate", lambda: 1024**3)
    done = kernel_says(monkeypatch, {})
    drbd.unlimit_rate("mcvirt-hd-1")
    assert done.pop() == ["drbdadm", "disk-options", "--c-max-rate=1048576k", "--resync-rate=1048576k", "mcvirt-hd-1"]
    monkeypatch.setattr(drbd, "most_rate", lambda: None)
    drbd.unlimit_rate("mcvirt-hd-1")
    assert done == [
        ["drbdadm", "disk-options", "--c-max-rate=204800k", "--resync-rate=204800k", "mcvirt-hd-1"],
    ]
    files = global_common_text(Common())
    assert "c-max-rate 204800k;" in files and "resync-rate 204800k;" in files
    kernel_says(monkeypatch, {"disk-options": None, "status": None})
    drbd.unlimit_rate("mcvirt-hd-1")  # it is down, and comes up as the files say
    kernel_says(monkeypatch, {"disk-options": None, "status": "mcvirt-hd-1 role:Primary"})
    with pytest.raises(CommandFailed):
        drbd.unlimit_rate("mcvirt-hd-1")
