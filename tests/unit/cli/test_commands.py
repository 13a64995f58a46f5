from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import pytest

from mcvirt.types.auth import CreatedUser, GroupInfo, PermissionInfo, SessionInfo, UserInfo, Whoami
from mcvirt.types.cluster import ClusterSettings, NodeInfo
from mcvirt.types.drain import Drain, DrainMove, DrainPlan, DrainReport, Staying
from mcvirt.types.migration import MigrationCheck
from mcvirt.types.move import MovePlan, MoveReport
from mcvirt.types.network import NetworkInfo
from mcvirt.types.storage import BackendInfo, BackendSpec, BackendType, DiskInfo, IsoInfo, VolumeFormat
from mcvirt.types.task import StepInfo, TaskInfo, TaskState
from mcvirt.types.vm import (
    AutoStart,
    ConsoleChunk,
    DiskDriver,
    GraphicsDriver,
    LockState,
    Machine,
    PowerState,
    StorageType,
    VmAdapter,
    VmDisk,
    VmInfo,
    VmRow,
    VncInfo,
)
from mcvirt_client.cli.main import run
from mcvirt_client.tasks import Detached
from tests.unit.cli.fake import Client, run_with

GIB = 1024**3
NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
ROW = VmRow(name="web1", state=PowerState.RUNNING, node="n1", memory=GIB, cpu_count=2, disk_size=8 * GIB)
LOST = VmRow(name="web2", state=PowerState.UNKNOWN, node=None, memory=GIB, cpu_count=1, disk_size=0, missing=True)
INFO = VmInfo(
    name="web1",
    id="vm-1",
    uuid="u",
    state=PowerState.STOPPED,
    node="n1",
    nodes=("n1",),
    memory=GIB,
    cpu_count=2,
    machine=Machine.Q35,
    accelerator="kvm",
    graphics_driver=GraphicsDriver.VIRTIO,
    autostart=AutoStart.ON_BOOT,
    lock=LockState.UNLOCKED,
    delete_protection=False,
    autodeflate=True,
    flags=(),
    iso=None,
    disks=(
        VmDisk(slot=1, id="hd-1", size=8 * GIB, storage_type=StorageType.LOCAL, backend="ssd", driver=DiskDriver.SCSI),
    ),
    adapters=(VmAdapter(mac="00:16:3e:00:00:01", network="lan"),),
    groups=(),
    permissions={"alice": ("MODIFY_VM",)},
    warnings=("It has no network adapters.",),
)
DISK = DiskInfo(
    id="hd-1",
    size=GIB,
    storage_type=StorageType.LOCAL,
    backend="ssd",
    backend_id="sb-1",
    volume="mcvirt-hd-1",
    driver=DiskDriver.VIRTIO,
    nodes=("n1",),
    vm="web1",
    slot=1,
)
BACKEND = BackendInfo(
    id="sb-1",
    name="ssd",
    type=BackendType.LVM,
    location="vg0",
    nodes={"n1": "", "n2": "vg9"},
    shared=False,
    thin_pool=None,
    format=VolumeFormat.RAW,
    free=GIB,
    total=2 * GIB,
    problem="It is nearly full.",
)
NODE = NodeInfo(
    name="n1",
    id="nd-1",
    address=None,
    status="Local",
    version="12",
    revision=1,
    cpu_count=4,
    cpu_percent=12.5,
    memory=8 * GIB,
    memory_used=2 * GIB,
    accelerator="tcg",
    accelerator_reason="there is no /dev/kvm",
    libvirt="9.0",
    vms_running=1,
    vms=2,
)
TASK = TaskInfo(
    id="tsk-1",
    operation="vm.create",
    target="web1",
    user="root",
    node="n1",
    state=TaskState.RUNNING,
    started=NOW,
    steps=(StepInfo(name="Creating disk", done=GIB, total=2 * GIB, unit="B"),),
)
ISO = IsoInfo(name="debian.iso", size=GIB, sha256="0" * 64, node="n1")
SESSION = SessionInfo(id="ss-1", user="alice", address="::1", created=NOW, last_used=NOW, expires=NOW, current=True)
GROUP = GroupInfo(name="owner", id="gp-1", permissions=("CLONE_VM",), users=("a",), vm_users={"web1": ("b",)})
USER = UserInfo(name="alice", user_type="Local", superuser=False, groups=("owner",), permissions=())

PRINTING = {
    "list": ("vms__list", (ROW, LOST)),
    "info": ("nodes__list", (NODE,)),
    "info web1": ("vms__info", INFO),
    "info web1 --vnc-port": ("vms__vnc", VncInfo(node="n1", host="127.0.0.1", port=5900, password="p")),
    "hard-drive list": ("hard_drives__list", (DISK,)),
    "hard-drive create 1GiB": ("hard_drives__create", DISK),
    "iso list": ("isos__list", (ISO,)),
    "storage list": ("storage__list", (BACKEND,)),
    "network list": ("networks__list", (NetworkInfo(name="lan", interface="br0"),)),
    "user list": ("users__list", (USER,)),
    "user create bob --generate-password": ("users__create", CreatedUser(name="bob", password="secret")),
    "group list": ("groups__list", (GROUP,)),
    "permission --list": ("groups__permissions", (PermissionInfo(permission="X", description="All", vm=True),)),
    "node --get-autostart-interval": ("nodes__settings", ClusterSettings(autostart_interval=300)),
    "task list": ("tasks__list", (TASK,)),
    "session list": ("auth__sessions", (SESSION,)),
    "whoami": ("auth__whoami", Whoami(user="a", superuser=False, permissions=(), node="n1")),
}


@pytest.mark.parametrize("line", PRINTING)
def test_json_is_the_same_values_exactly(capsys, line):
    label, value = PRINTING[line]
    assert run_with(Client(**{label: value}), f"{line} --json") == 0
    out = capsys.readouterr().out
    kind = tuple[type(value[0]), ...] if isinstance(value, tuple) else type(value)
    assert msgspec.json.decode(out, type=kind) == value


@pytest.mark.parametrize("line", PRINTING)
def test_text_goes_to_stdout(capsys, line):
    label, value = PRINTING[line]
    assert run_with(Client(**{label: value}), line) == 0
    assert capsys.readouterr().out.strip()


def test_list_shows_what_operators_know(capsys):
    client = Client(vms__list=(ROW, LOST))
    assert run_with(client, "list --ram") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["VM", "Name", "State", "Node", "RAM", "Allocation"]
    assert lines[1].split() == ["web1", "RUNNING", "n1", "1", "GiB"]
    assert lines[2].split() == ["web2", "Unavailable", "(not", "registered)", "Unregistered", "1", "GiB"]


def test_hard_drive_that_is_being_deleted_is_shown_as_such(capsys):
    deleting = msgspec.structs.replace(DISK, id="hd-2", vm=None, slot=None, deleting=True)
    both = msgspec.structs.replace(DISK, deleting=True)
    assert run_with(Client(hard_drives__list=(DISK, deleting, both)), "hard-drive list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].endswith("web1 (disk 1), being deleted")
    assert lines[1].endswith("web1 (disk 1)")
    assert lines[2].endswith("being deleted")


def test_info_has_all_parts_and_says_warnings_to_the_person(capsys):
    assert run_with(Client(vms__info=INFO), "info web1") == 0
    out, err = capsys.readouterr()
    for text in ("CPU Cores", "8 GiB", "-- MAC Address --", "00:16:3e:00:00:01", "alice", "Not running", "ON_BOOT"):
        assert text in out
    assert err == "Warning: It has no network adapters.\n"
    assert run_with(Client(vms__info=INFO), "info web1 --node") == 0
    assert capsys.readouterr().out == "n1\n"


def test_nodes_say_what_machines_run_on_and_why(capsys):
    assert run_with(Client(nodes__list=(NODE,)), "info") == 0
    assert "tcg (there is no /dev/kvm)" in capsys.readouterr().out


def test_a_generated_password_is_shown_once(capsys):
    client = Client(users__create=CreatedUser(name="bob", password="s3"))
    assert run_with(client, "user create bob --generate-password") == 0
    out, err = capsys.readouterr()
    assert out == "bob\ns3\n"
    assert "s3" not in err
    assert client.calls == [("users.create", ("bob", None), {})]


@pytest.mark.parametrize(
    ("line", "label", "args"),
    [
        ("delete web1 --keep-disks", "vms.delete", ("web1", True, False)),
        ("register web1", "vms.register", ("web1",)),
        ("lock web1 --unlock", "vms.set_lock", ("web1", False)),
        ("hard-drive attach hd-1 web1", "hard_drives.attach", ("hd-1", "web1")),
        ("hard-drive detach hd-1", "hard_drives.detach", ("hd-1",)),
        ("hard-drive delete hd-1", "hard_drives.delete", ("hd-1", False)),
        ("hard-drive delete hd-1 --forget", "hard_drives.delete", ("hd-1", True)),
        ("iso delete x.iso --node n2", "isos.delete", ("x.iso", "n2")),
        ("storage add-node ssd --node n2 vg2 --node n3", "storage.add_nodes", ("ssd", {"n2": "vg2", "n3": ""})),
        ("storage remove-node ssd --node n2 --node n3", "storage.remove_nodes", ("ssd", ("n2", "n3"))),
        ("network create lan --interface br0", "networks.create", ("lan", "br0")),
        ("user add-permission a x y --virtual-machine w", "users.add_permissions", ("a", ("X", "Y"), "w")),
        ("group add-user g a b", "groups.add_users", ("g", ("a", "b"), None)),
        ("permission web1 --add-owner a", "groups.add_users", ("owner", ("a",), "web1")),
        ("permission --global --delete-user a", "groups.remove_users", ("user", ("a",), None)),
        ("permission --global --add-superuser a", "users.add_superuser", ("a",)),
        ("node --set-autostart-interval 60", "nodes.set_autostart_interval", (60,)),
        ("task cancel tsk-1", "tasks.cancel", ("tsk-1",)),
        ("session revoke --user a", "auth.revoke", (None, "a")),
        ("audit list --limit 5 --user a", "audit.list", (5, "a", None)),
    ],
)
def test_words_become_one_call(line, label, args):
    client = Client(audit__list=())
    assert run_with(client, line) == 0
    assert client.calls == [(label, args, {})]


def test_set_vm_vg_makes_a_backend(capsys):
    client = Client(storage__create=BACKEND)
    assert run_with(client, "node --set-vm-vg vg0") == 0
    assert client.calls == [
        ("storage.create", (BackendSpec(name="vg0", type=BackendType.LVM, location="vg0"),), {}),
    ]
    assert run_with(client, "node --set-vm-vg vg0 --get-autostart-interval") == 2


def test_clear_method_lock_cancels_what_runs_and_nothing_else(capsys):
    replace = msgspec.structs.replace
    running = replace(TASK, id="tsk-1", state=TaskState.RUNNING)
    client = Client(tasks__list=(running, replace(running, id="tsk-2", state=TaskState.STUCK)))
    assert run_with(client, "clear-method-lock") == 0
    assert client.calls == [("tasks.list", (False,), {}), ("tasks.cancel", ("tsk-1",), {})]
    assert "Running task cancelled: tsk-1\n" in capsys.readouterr().err
    assert run_with(Client(tasks__list=()), "clear-method-lock") == 0
    assert capsys.readouterr().err == "No running tasks\n"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"state": PowerState.STOPPED}, "Not running"),
        ({"state": PowerState.RUNNING}, "Unknown"),
        ({"state": PowerState.UNKNOWN}, "Unknown"),
        ({"state": PowerState.UNKNOWN, "missing": True}, "Not running"),
        ({"state": PowerState.UNKNOWN, "node": None}, "Not running"),
    ],
)
def test_usage_of_a_guest_that_nothing_is_known_of(how, said, capsys):
    assert run_with(Client(vms__info=msgspec.structs.replace(INFO, **how)), "info web1") == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if line.startswith("Guest "))
    assert {value.strip() for value in rows.values()} == {said}


def test_draining_says_what_moves_and_what_stays(capsys):
    move = DrainMove(name="web1", source="n1", target="n2", online=True, size=2**20)
    plan = DrainPlan(node="n1", back=False, moves=(move,), staying=(Staying(name="db1", reason="It is locked."),))
    report = DrainReport(node="n1", back=True, moved=(move,))
    client = Client(drains__plan=plan, drains__drain=report)
    assert run_with(client, "node drain n1 --dry-run --copy-storage") == 3
    out = capsys.readouterr().out
    assert "n1 -> n2, online, about 1 MiB to send" in out and "STAYS" in out and "It is locked." in out
    assert run_with(client, "node drain n1 --return --at-once 2 --bandwidth 1MiB --deadline 9") == 0
    assert "Successfully brought 1 virtual machine back to n1\n  web1: n1 -> n2, online" in capsys.readouterr().err
    assert client.calls == [
        ("drains.plan", ("n1", Drain(copy_storage=True)), {}),
        ("drains.drain", ("n1", Drain(back=True, at_once=2, bandwidth=2**20, deadline=9)), {}),
    ]


def test_moving_a_side_says_what_was_moved(capsys):
    check = MigrationCheck(name="Disks", ok=False, text="They are not good.")
    values = {"name": "web1", "source": "n2", "destination": "n3", "size": 2**20}
    plan = MovePlan(**values, checks=(check,), steps=("Copy all of it to n3",), seconds=2)
    report = MoveReport(**values, disks=("hd-1",), seconds=1.5, left=True)
    client = Client(moves__plan=plan, moves__move=report)
    assert run_with(client, "move --source-node n2 --destination-node n3 web1 --dry-run") == 3
    out = capsys.readouterr().out
    assert "FAILED" in out and "Copy all of it to n3" in out and "can't be done" in out
    assert run_with(client, "move web1 --destination-node n3 --force") == 0
    said = capsys.readouterr().err
    assert "Successfully moved the disks of 'web1' from n2 to n3" in said and "Node n2 deletes" in said
    assert client.calls == [
        ("moves.plan", ("web1",), {"destination": "n3", "source": "n2", "force": False}),
        ("moves.move", ("web1",), {"destination": "n3", "source": None, "force": True}),
    ]
    assert run_with(client, "move web1") == 2


def test_update_changes_what_is_named_and_nothing_else():
    client = Client(vms__update=INFO, vms__info=INFO)
    assert run_with(client, "update web1 --memory 2GiB") == 0
    assert run_with(client, "update web1 --iso") == 0
    assert run_with(client, "update web1 --disable-memballoon-deflation") == 0
    assert run_with(client, "update web1 --cpu-count 4 --autostart-disable") == 0
    changes = [args[1] for label, args, _ in client.calls if label == "vms.update"]
    given = [{n: v for n, v in msgspec.structs.asdict(c).items() if v != getattr(type(c)(), n)} for c in changes]
    assert given == [
        {"memory": 2 * GIB},
        {"iso": ""},
        {"autodeflate": False},
        {"cpu_count": 4, "old_cpu_count": 2, "autostart": AutoStart.NO_AUTOSTART},
    ]


def test_update_says_what_it_did(capsys):
    assert run_with(Client(vms__update=INFO, vms__info=INFO), "update web1 --memory 1GiB --cpu-count 2") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "RAM allocation will be changed to 1 GiB on next VM boot." in err
    assert "Number of virtual cores will be changed from 2 to 2." in err


def test_no_wait_prints_the_task(capsys):
    from mcvirt.types.task import TaskRef

    client = Client(vms__create=Detached(TaskRef("tsk-1")), vms__start=Detached(TaskRef("tsk-2")))
    assert run_with(client, "create web1 --memory 512 --cpu-count 1 --no-wait") == 0
    assert run_with(client, "start a b --no-wait") == 0
    assert capsys.readouterr().out == "tsk-1\ntsk-2\ntsk-2\n"
    assert run_with(client, "start a b --no-wait --json") == 0
    assert json.loads(capsys.readouterr().out)["tasks"] == {"a": "tsk-2", "b": "tsk-2"}
    assert not client.follower.wait


def test_interrupted_waiting_leaves_the_task_and_says_how_to_find_it(capsys):
    from mcvirt.types.task import TaskRef

    client = Client(vms__delete=Detached(TaskRef("tsk-1"), asked=False))
    assert run_with(client, "delete web1") == 130
    assert "mcvirt task watch tsk-1" in capsys.readouterr().err


def test_the_log_of_a_console_is_bytes(capfdbinary):
    client = Client(vms__console_log=ConsoleChunk(data=b"hello\r\n\xff\x1b[0m", open=True))
    assert run_with(client, "console web1 --log") == 0
    assert capfdbinary.readouterr().out == b"hello\r\n\xff\x1b[0m"


def test_guests_names_can_not_paint_the_terminal(capsys):
    evil = IsoInfo(name="\x1b]0;x\x07.iso", size=1, sha256="", node="n1")
    assert run_with(Client(isos__list=(evil,)), "iso list") == 0
    assert "\x1b" not in capsys.readouterr().out


def test_help_and_version_ask_nobody(capsys, monkeypatch):
    monkeypatch.setenv("MCVIRT_RUN_DIR", "/nonexistent")
    for line in ("--help", "list --help", "network --help", "help", "help info", "--version", "storage create -h"):
        assert run(line.split()) == 0
        assert capsys.readouterr().out


def test_no_daemon_is_a_sentence(capsys, monkeypatch):
    monkeypatch.setenv("MCVIRT_RUN_DIR", "/nonexistent")
    assert run(["list"]) == 5
    assert "Is mcvirtd running?" in capsys.readouterr().err
