"""Which node an operation runs on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcvirt.api.storage import HardDriveApi
from mcvirt.api.verification import VerificationApi
from mcvirt.api.vm import VmApi
from mcvirt.rpc.contract import operations
from mcvirt.types.storage import BackendType
from mcvirt.types.vm import DiskDriver, DiskSpec, StorageType, VmSpec
from mcvirtd.cluster.routing import Router
from mcvirtd.state.records import BackendRecord, DiskRecord, NodeRecord, VmRecord
from mcvirtd.state.store import Store


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    store = Store(tmp_path / "state.db")
    with store.change() as change:
        for name in ("n1", "n2", "n3"):
            change.put(NodeRecord(name=name, id=name))
        for name, nodes, shared in (
            ("here", ("n1", "n2"), False),
            ("there", ("n2",), False),
            ("elsewhere", ("n2", "n3"), False),
            ("common", ("n2", "n3"), True),
        ):
            change.put(
                BackendRecord(
                    name=name,
                    id=f"sb-{name}",
                    type=BackendType.FILE,
                    location="/srv",
                    nodes=dict.fromkeys(nodes, ""),
                    shared=shared,
                )
            )
        for name, node in (("web1", "n1"), ("web3", "n3"), ("loose", None)):
            change.put(VmRecord(name=name, id=name, uuid=name, memory=1, cpu_count=1, nodes=("n1",), node=node))
    yield Router(store, "n1", lambda *call: b"")
    store.close()


def owner(router: Router, contract: type, operation: str, **arguments: Any) -> str:
    return router.owner(operations(contract)[operation], arguments)


@pytest.mark.parametrize(
    ("vm", "backend", "node"),
    [
        ("web3", "here", "n3"),
        ("web1", "there", "n1"),
        ("loose", "there", "n2"),
        (None, "here", "n1"),
        (None, "there", "n2"),
        (None, "sb-there", "n2"),
        (None, "common", "n2"),
        (None, "elsewhere", "n1"),  # which of the two, only who calls knows
        (None, "nowhere", "n1"),
    ],
)
def test_a_volume_is_imported_where_it_can_be(router: Router, vm: str | None, backend: str, node: str) -> None:
    assert owner(router, HardDriveApi, "import_volume", volume="v", backend=backend, vm=vm, driver=None) == node
    assert owner(router, HardDriveApi, "create", spec=DiskSpec(size=1, backend=backend), vm=vm) == node


@pytest.mark.parametrize(
    ("nodes", "node"), [((), "n1"), (("n2", "n1"), "n1"), (("n3", "n2"), "n3"), (("n9", "n2"), "n2"), (("n9",), "n1")]
)
def test_a_machine_is_created_on_one_of_its_nodes(router: Router, nodes: tuple[str, ...], node: str) -> None:
    spec = VmSpec(name="new1", memory=1, cpu_count=1, nodes=nodes)
    assert owner(router, VmApi, "create", spec=spec) == node


@pytest.mark.parametrize(
    ("vm", "nodes", "node"),
    [
        (None, ("n2", "n3"), "n2"),
        (None, ("n2", "n1"), "n1"),
        ("web3", ("n2", "n3"), "n3"),
        ("web1", ("n1", "n2"), "n1"),
        ("loose", ("n2", "n3"), "n2"),
    ],
)
def test_a_hard_drive_is_repaired_where_its_machine_or_else_a_side_of_it_is(
    router: Router, vm: str | None, nodes: tuple[str, ...], node: str
) -> None:
    with router._store.change() as change:
        change.put(
            DiskRecord(
                id="hd-1",
                volume="v",
                backend="here",
                size=1,
                driver=DiskDriver.VIRTIO,
                storage_type=StorageType.DRBD,
                nodes=nodes,
                vm=vm,
                slot=1 if vm else None,
            )
        )
    assert owner(router, VerificationApi, "resync", name="hd-1") == node
    assert owner(router, VerificationApi, "verify_disk", disk="hd-1") == node
    assert owner(router, VerificationApi, "resync", name="hd-2") == "n1"
