"""This node among the others: its certificate, where it listens for them, whom it reaches, what it knows of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from mcvirt import __version__
from mcvirt.errors import Conflict, McvirtError
from mcvirt.rpc import codec
from mcvirt.types.peer import Beat, BeatAnswer
from mcvirtd.cluster.forwarding import NoReplication, Replication
from mcvirtd.cluster.keys import Keys
from mcvirtd.cluster.live import Known, Live
from mcvirtd.cluster.members import Members
from mcvirtd.cluster.node_service import NodeService
from mcvirtd.cluster.peers import DEFAULT_PORT, Peers
from mcvirtd.hypervisor.verbs import HypervisorVerbs
from mcvirtd.state.records import NodeRecord
from mcvirtd.state.replication import given_up
from mcvirtd.state.store import Change, Store

log = logging.getLogger(__name__)
FIND_WITHIN = 6.0


class Listener(Protocol):
    """The listening side of mcvirtd."""

    def listen_also(self, hosts: Collection[str]) -> None:
        """Listen on *hosts* too, and end that for others; raises OSError."""


class Presence:
    """Follows the records of the members by itself, this node's address included.

    *replication* may be set until `start`.
    """

    def __init__(
        self,
        *,
        store: Store,
        node: str,
        keys: Keys,
        hypervisor: HypervisorVerbs,
        accelerator: Callable[[], tuple[str, str]],
    ) -> None:
        self._store = store
        self._node = node
        self._keys = keys
        self._listener: Listener | None = None
        self._listens_at: str | None = None
        self._following = threading.Lock()
        self.replication: Replication = NoReplication()
        self.warnings: Callable[[], tuple[str, ...]] = tuple
        self.members = Members(store, node)
        self.peers = Peers(members=self.members, context=keys.peer_context, say=self._say, heard=self._heard)
        self.nodes = NodeService(
            store=store,
            node=node,
            hypervisor=hypervisor,
            accelerator=accelerator,
            live=self._known,
            version_fault=self.members.version_fault,
            warnings=lambda: self.warnings(),  # noqa: PLW0108 - it is set later
        )
        self.nodes.try_address = self.try_address
        self.live = Live(
            hypervisor=hypervisor,
            info=self.nodes.here,
            reachable=lambda other: self.peers.status(other).reachable,
            changed=self.peers.wake,
            wanted=lambda: bool(self.members.others()),
        )
        store.subscribe(self._on_change)

    def start(self, listener: Listener) -> None:
        """Listen on the cluster address, and begin to speak with the others."""
        codec.prepare()  # until now one thread has decoded; from now on many will
        self._listener = listener
        self.listen()
        self.live.start()
        self.peers.start()

    def stop(self) -> None:
        """Fall silent."""
        self.live.stop()
        self.peers.close()

    # --- who this node is ---------------------------------------------------------------------------------------------

    @property
    def address(self) -> str | None:
        """The cluster address."""
        record = self._store.get(NodeRecord, self._node)
        return record.address if record is not None else None

    def renew_certificate(self) -> None:
        """Have a certificate that is good, and names the cluster address; connections made from now on show it."""
        self._keys.renew()

    def take_identity(self) -> None:
        """The certificate, or what is trusted, was exchanged: use it, with new connections to all members."""
        self.renew_certificate()
        self.peers.reconnect()

    def listen(self) -> None:
        """Listen where the record says, unless it is so already; what can't be had is tried again by the next call."""
        address = self.address
        if self._listener is None or address == self._listens_at:
            return
        try:
            self._listener.listen_also([address] if address else [])
            self._listens_at = address
        except OSError as error:
            log.error("can't listen on the cluster address %s: %s", address, error.strerror)

    def try_address(self, address: str) -> None:
        """Listen at *address* as well, and raise Conflict unless every member that answers finds this node there.

        Whoever stores it in the record has it used; otherwise `listen` ends that.
        """
        others = [name for name in self.peers.reachable() if name not in given_up()]
        record = self._store.get(NodeRecord, self._node)
        if self._listener is None or record is None or not others:
            return
        try:
            self._listener.listen_also([each for each in (record.address, address) if each])
            asked = {"address": address, "port": record.port or DEFAULT_PORT}
            answers = self.peers.call_all(others, "finds", asked, FIND_WITHIN)
        except OSError as error:
            raise Conflict(text=f"Nothing can listen at address {address}: {error.strerror}.") from None
        faults = [
            f"node '{node}' does not find it there: {fault}"
            for node, answer in sorted(answers.items())
            if (fault := str(answer) if isinstance(answer, McvirtError) else msgspec.json.decode(answer, type=str))
        ]
        if faults:
            self._listener.listen_also([record.address] if record.address else [])
            raise Conflict(text=f"Node '{self._node}' can't have the address {address}: {'; '.join(faults)}")

    def _known(self, node: str) -> Known:
        return self.live.of(node)

    # --- the others ---------------------------------------------------------------------------------------------------

    def _say(self, node: str) -> Beat:
        replica, live = self.replication.facts(), self.live.news_for(node)
        return Beat(version=__version__, address=self.address or "", replica=replica, live=live)

    def hear(self, node: str, beat: Beat) -> None:
        """Member *node* has sent a heartbeat."""
        self.members.note_version(node, beat.version)
        if self.members.note_address(node, beat.address):
            log.info("node %s says that it is at %s", node, beat.address)
            self.peers.refresh()

    def _heard(self, node: str, answer: BeatAnswer) -> None:
        self.members.note_version(node, answer.version)
        if answer.replica:
            self.replication.observe(node, answer.replica)
        if self.live.acknowledged(node, answer.have):
            self.peers.wake(node)

    def _on_change(self, change: Change) -> None:
        touched = {key for kind, key in (*change.puts, *change.deletes) if kind == NodeRecord.kind}
        if not touched:
            return
        for kind, key in change.deletes:
            if kind == NodeRecord.kind:
                self.live.forget(key)
        # What follows connects and listens, and the change is not to wait for that.
        threading.Thread(target=self._follow, name="members", daemon=True).start()

    def _follow(self) -> None:
        with self._following:
            if self._listener is not None and self.address != self._listens_at:
                # Connections that there are go on: the answer to this very change may be on its way through one.
                self.renew_certificate()
                self.listen()
            self.peers.refresh()
