"""Who is a member of the cluster: by the key in its certificate, looked up anew for every call.

A certificate that leads up to the cluster's CA makes nobody a member. Its key must be the one in the record of the node
(NodeRecord.fingerprint is the SHA-256 of the public key: it stays the same when a certificate is renewed, so a
member that was away meanwhile still knows the others). Once the record is gone, so is the membership.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

import msgspec

from mcvirt import __version__
from mcvirt.errors import NodeUnreachable, NotAMember, NotAuthenticated
from mcvirtd.auth.caller import Caller
from mcvirtd.cluster.certificates import key_fingerprint
from mcvirtd.cluster.suitability import neighbours
from mcvirtd.state.records import NodeRecord
from mcvirtd.state.store import Store


class Members:
    """The nodes of the cluster, as the records have them; *node* is this one."""

    def __init__(self, store: Store, node: str) -> None:
        self._store = store
        self.node = node
        self._versions: dict[str, str] = {}
        self._said: dict[str, tuple[str | None, str]] = {}

    def others(self) -> Mapping[str, NodeRecord]:
        """All members but this one that have an address, by name; with the one at which they say that they are."""
        records = self._store.all(NodeRecord)
        return {
            name: self._at_home(record) for name, record in records.items() if name != self.node and record.address
        }

    def _at_home(self, record: NodeRecord) -> NodeRecord:
        known, said = self._said.get(record.name, (None, ""))
        return msgspec.structs.replace(record, address=said) if said and known == record.address else record

    def note_address(self, name: str, address: str) -> bool:
        """Member *name* has said where it is; True if that is news.

        Who was away while the leader moved can't hear of it from the records: those are the leader's to give.
        """
        record = self._store.get(NodeRecord, name)
        before = self._said.get(name)
        if record is None or record.address == address or not _is_address(address):
            self._said.pop(name, None)
        else:
            self._said[name] = (record.address, address)
        return self._said.get(name) != before

    def one_at(self, address: str) -> bool:
        """Whether another member has that address."""
        return any(record.address == address for record in self.others().values())

    def recognise(self, name: object, certificate: bytes | None, address: str) -> Caller:
        """Who a connection is whose handshake says that it is node *name*; NotAMember if it is not."""
        if certificate is None:
            raise NotAuthenticated(text="A node proves itself with its certificate, and none was shown.")
        caller = Caller(peer=str(name), key=key_fingerprint(certificate), address=address)
        if not self.is_member(caller):
            shown = str(name)[:64]
            raise NotAMember(node=self.node, name=shown if shown.isprintable() else "?")
        return caller

    def is_member(self, caller: Caller) -> bool:
        """Whether the node that *caller* is is another member, and its key the member's."""
        record = self._store.get(NodeRecord, caller.peer)
        return record is not None and record.name != self.node and bool(caller.key) and record.fingerprint == caller.key

    def note_version(self, name: str, version: str) -> None:
        """Member *name* has said that it has that version of mcvirt."""
        self._versions[name] = version

    def version_fault(self, name: str) -> str:
        """Why this node and member *name* can't work together, a sentence; "" if they can, as far as is known."""
        version = self._versions.get(name, "")
        if not version or neighbours(__version__, version):
            return ""
        return f"it has mcvirt {version}, which does not work together with {__version__} here. Upgrade the older."

    def check_version(self, name: str) -> None:
        """Raise NodeUnreachable unless this node and member *name* work together."""
        if fault := self.version_fault(name):
            raise NodeUnreachable(node=name, reason=fault)

    def verify(self, name: str, certificate: bytes) -> None:
        """Raise NodeUnreachable unless *certificate* (DER) is that of member *name*."""
        record = self._store.get(NodeRecord, name)
        if record is None or record.fingerprint != key_fingerprint(certificate):
            raise NodeUnreachable(node=name, reason="what answers there has another key than this member.")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
