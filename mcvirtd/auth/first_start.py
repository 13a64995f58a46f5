"""What the daemon makes before it serves: its identity and first records, once, and root's token at each start."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import msgspec

from mcvirt import names
from mcvirt.errors import McvirtError, StateRefused
from mcvirt.permissions import DEFAULT_GROUPS
from mcvirtd.auth.grants import in_order
from mcvirtd.auth.groups import ID_CODE
from mcvirtd.auth.tokens import new_token
from mcvirtd.host import files
from mcvirtd.state.records import ClusterRecord, GroupRecord, NodeRecord, SettingsRecord
from mcvirtd.state.store import Store

NODE_FILE = "node.json"
TOKEN_FILE = "root.token"  # noqa: S105 - a file's name
_LARGEST = 65536


class NodeIdentity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who this node is, for good."""

    name: str
    id: str


def directories(state: Path, run: Path) -> None:
    """Have mcvirtd's directories, with the modes that they need."""
    # QEMU runs as a user of its own and must reach the ISO images; what is secret in there has modes of its own.
    for path, mode in ((state, 0o711), (run, 0o755), (state / "console", 0o700)):
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        path.chmod(mode)


def node_identity(state: Path, name: str) -> NodeIdentity:
    """The node's identity, kept in *state*; made now, with *name*, if there is none.

    Volumes, certificates and other nodes know a node by its name, so it never changes: StateRefused if *name*, which
    is the settings' or the machine's, is another one by now, or if what is kept can't be read.
    """
    path = state / NODE_FILE
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST)
    except FileNotFoundError:
        made = NodeIdentity(name=names.node_name(name), id=str(uuid.uuid4()))
        files.write_atomically(path, msgspec.json.encode(made) + b"\n")
        return made
    except OSError as error:
        raise StateRefused(path=str(path), reason=f"{error.strerror}.", hint="") from None
    found = _read(path, data)
    if found.name != name:
        raise StateRefused(
            path=str(path),
            reason=f"this node was set up as '{found.name}', and now it is called '{name}'.",
            hint=f"Write name = \"{found.name}\" below [node] in the settings, or give the machine its old host name.",
        )
    return found


def frozen_name(state: Path) -> str | None:
    """The name that this node was given at its first start; None before that. Changes nothing; see node_identity."""
    path = state / NODE_FILE
    try:
        return _read(path, path.read_bytes()).name
    except OSError:
        return None


def _read(path: Path, data: bytes) -> NodeIdentity:
    try:
        found = msgspec.json.decode(data, type=NodeIdentity)
        names.node_name(found.name)
        uuid.UUID(found.id)
    except (msgspec.MsgspecError, McvirtError, ValueError) as error:
        raise StateRefused(
            path=str(path), reason=f"it can't be read: {str(error).rstrip('.')}.", hint="Restore it from a backup."
        ) from None
    return found


def first_records(store: Store, identity: NodeIdentity, *, address: str | None = None) -> bool:
    """Make what a new state begins with: settings, the default groups, and this node. True if it was new.

    No user is made: the first one is made by root. StateRefused if the state is that of another node.
    """
    with store.change() as change:
        if change.get(SettingsRecord, "cluster") is None:
            change.put(SettingsRecord())
            for name, permissions in DEFAULT_GROUPS.items():
                held = in_order(permission.value for permission in permissions)
                change.put(GroupRecord(name=name, id=names.new_id(ID_CODE), permissions=held))
            change.put(NodeRecord(name=identity.name, id=identity.id, address=address))
            change.put(ClusterRecord(id=str(uuid.uuid4()), leader=identity.name))
            return True
        if change.get(ClusterRecord, "cluster") is None:
            # A state from before there were clusters.
            change.put(ClusterRecord(id=str(uuid.uuid4()), leader=identity.name))
        record = change.get(NodeRecord, identity.name)
        if record is None or record.id != identity.id:
            members = ", ".join(f"'{name}'" for name in sorted(change.all(NodeRecord)))
            raise StateRefused(
                path=str(store.path),
                reason=f"it is not the state of this node, '{identity.name}' ({identity.id}), but of {members}.",
                hint=f"Restore it and {NODE_FILE} from the same backup.",
            )
    return False


def write_root_token(run: Path) -> str:
    """A new token for root, in a file in *run* that only root can read; the one of the last start is worth nothing.

    StateRefused if others can change what is in *run*, and so could read the token.
    """
    run.mkdir(mode=0o755, parents=True, exist_ok=True)
    facts = run.stat()
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        raise StateRefused(
            path=str(run),
            reason="root's token can't be kept there, as others than root may write there.",
            hint=f"`chown root {run}` and `chmod go-w {run}` change that.",
        )
    token = new_token()
    files.write_atomically(run / TOKEN_FILE, token.encode() + b"\n")
    return token
