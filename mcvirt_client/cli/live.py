"""The names that completion offers, asked of the daemon: quickly, or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mcvirt_client.client import Client


def _permissions(_client: Client) -> Iterable[str]:
    from mcvirt.permissions import Permission

    return [permission.value for permission in Permission]


def names(client: Client, kind: str) -> list[str]:
    """All names of *kind* (see KINDS); raises what the client raises."""
    return sorted(KINDS[kind](client))


KINDS = {
    "vm": lambda client: client.vms.names(),
    "network": lambda client: [network.name for network in client.networks.list()],
    "backend": lambda client: [backend.name for backend in client.storage.list()],
    "iso": lambda client: [image.name for image in client.isos.list()],
    "user": lambda client: [user.name for user in client.users.list()],
    "group": lambda client: [group.name for group in client.groups.list()],
    "disk": lambda client: [disk.id for disk in client.hard_drives.list()],
    "task": lambda client: [task.id for task in client.tasks.list(False)],
    "node": lambda client: [node.name for node in client.nodes.list()],
    "permission": _permissions,
}
