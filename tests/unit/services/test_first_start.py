from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mcvirt.errors import BadArgument, StateRefused
from mcvirt.permissions import DEFAULT_GROUPS
from mcvirtd.auth.first_start import NodeIdentity, first_records, node_identity, write_root_token
from mcvirtd.state.records import GroupRecord, NodeRecord, SettingsRecord, UserRecord
from mcvirtd.state.store import Store

ME = NodeIdentity(name="alpha", id="6a0f2ab8-0c4a-4a6c-9d0d-0a5d6c0f4b11")


def test_a_node_keeps_its_name_and_id(tmp_path: Path) -> None:
    first = node_identity(tmp_path, "alpha")
    assert node_identity(tmp_path, "alpha") == first
    assert first.name == "alpha"
    assert stat.S_IMODE((tmp_path / "node.json").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["node.json"]


def test_another_name_is_refused_and_the_old_one_is_told(tmp_path: Path) -> None:
    first = node_identity(tmp_path, "alpha")
    with pytest.raises(StateRefused) as caught:
        node_identity(tmp_path, "beta")
    for part in ("node.json", "'alpha'", "'beta'", 'name = "alpha"'):
        assert part in str(caught.value)
    assert node_identity(tmp_path, "alpha") == first


def test_a_name_that_no_node_may_have_is_not_frozen(tmp_path: Path) -> None:
    with pytest.raises(BadArgument):
        node_identity(tmp_path, "a b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\0" * 100,
        b'{"name": "alpha"}',
        b'{"name": "alpha", "id": "x"}',
        b'{"name": "../x", "id": "6a0f2ab8-0c4a-4a6c-9d0d-0a5d6c0f4b11"}',
        b'{"name": "alpha", "id": "6a0f2ab8-0c4a-4a6c-9d0d-0a5d6c0f4b11", "more": 1}',
        b"\xff" * 70000,
    ],
)
def test_an_identity_that_can_not_be_read_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "node.json").write_bytes(content)
    with pytest.raises(StateRefused, match=r"node\.json"):
        node_identity(tmp_path, "alpha")
    assert (tmp_path / "node.json").read_bytes() == content


def test_a_new_state_has_settings_groups_and_the_node_but_no_user(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    assert first_records(store, ME, address="192.0.2.1")
    groups = store.all(GroupRecord)
    assert {name: set(group.permissions) for name, group in groups.items()} == {
        name: {permission.value for permission in permissions} for name, permissions in DEFAULT_GROUPS.items()
    }
    assert all(group.id.startswith("gp-") for group in groups.values())
    assert store.get(SettingsRecord, "cluster") == SettingsRecord()
    assert store.get(NodeRecord, "alpha") == NodeRecord(name="alpha", id=ME.id, address="192.0.2.1")
    assert not store.all(UserRecord)
    assert store.revision == 1
    store.close()


def test_a_later_start_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    first_records(store, ME)
    ids = {name: group.id for name, group in store.all(GroupRecord).items()}
    with store.change() as change:
        change.delete(GroupRecord, "user")
        change.edit(SettingsRecord, "cluster", autostart_interval=7)
    assert not first_records(store, ME)
    assert {name: group.id for name, group in store.all(GroupRecord).items()} == {"owner": ids["owner"]}
    assert store.revision == 2
    store.close()


@pytest.mark.parametrize("other", [{"name": "beta"}, {"id": "00000000-0c4a-4a6c-9d0d-0a5d6c0f4b11"}])
def test_the_state_of_another_node_is_refused(tmp_path: Path, other: dict[str, str]) -> None:
    store = Store(tmp_path / "state.db")
    first_records(store, ME)
    with pytest.raises(StateRefused, match="not the state of this node"):
        first_records(store, NodeIdentity(**{"name": ME.name, "id": ME.id, **other}))
    assert store.revision == 1
    store.close()


def test_roots_token_is_new_at_each_start_and_only_root_can_read_it(tmp_path: Path) -> None:
    run = tmp_path / "run" / "mcvirt"
    first = write_root_token(run)
    file = run / "root.token"
    assert file.read_text().strip() == first
    second = write_root_token(run)
    assert second != first
    assert len(second) >= 43
    assert file.read_text().strip() == second
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in run.iterdir()] == ["root.token"]


def test_the_token_goes_through_no_link_that_somebody_laid_out(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "root.token").symlink_to(victim)
    token = write_root_token(run)
    assert victim.read_text() == "mine"
    assert not (run / "root.token").is_symlink()
    assert (run / "root.token").read_text().strip() == token


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_no_token_is_put_where_others_may_write(tmp_path: Path, mode: int) -> None:
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(mode)
    with pytest.raises(StateRefused, match="others than root"):
        write_root_token(run)
    assert list(run.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_no_token_is_put_into_somebody_elses_directory(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    os.chown(run, 65534, 65534)
    with pytest.raises(StateRefused, match="others than root"):
        write_root_token(run)
