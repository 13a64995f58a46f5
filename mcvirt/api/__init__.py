"""The contracts. Importing this package costs nothing; `contracts()` imports and lists all of them."""

from __future__ import annotations


def contracts() -> tuple[type, ...]:
    """Every contract that the daemon publishes to users."""
    from mcvirt.api.auth import AuditApi, AuthApi, GroupApi, UserApi
    from mcvirt.api.cluster import NodeApi
    from mcvirt.api.drain import DrainApi
    from mcvirt.api.drbd import DrbdApi
    from mcvirt.api.membership import ClusterApi
    from mcvirt.api.migration import MigrationApi
    from mcvirt.api.move import MoveApi
    from mcvirt.api.network import NetworkApi
    from mcvirt.api.split_brain import SplitBrainApi
    from mcvirt.api.storage import HardDriveApi, IsoApi, StorageApi
    from mcvirt.api.task import TaskApi
    from mcvirt.api.verification import VerificationApi
    from mcvirt.api.vm import VmApi

    return (
        VmApi,
        MigrationApi,
        HardDriveApi,
        StorageApi,
        IsoApi,
        NetworkApi,
        DrbdApi,
        AuthApi,
        UserApi,
        GroupApi,
        AuditApi,
        NodeApi,
        ClusterApi,
        TaskApi,
        VerificationApi,
        SplitBrainApi,
        DrainApi,
        MoveApi,
    )
