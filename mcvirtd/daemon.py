"""The composition root: builds everything, in order, and runs it until it is told to stop."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any

from mcvirt import api
from mcvirt.api.drbd_peer import DrbdPeerApi
from mcvirt.api.membership import JoinApi, MembershipApi
from mcvirt.api.migration import ArrivalApi
from mcvirt.api.peer import PeerApi
from mcvirt.api.split_brain import SplitPeerApi
from mcvirt.errors import McvirtError, from_wire
from mcvirt.rpc import transport
from mcvirt.rpc.codec import Reply
from mcvirt.types.vm import AutoStart
from mcvirtd import endpoint
from mcvirtd.auth import first_start
from mcvirtd.auth.audit import Audit
from mcvirtd.auth.caller import SYSTEM, Caller, current_caller
from mcvirtd.auth.groups import GroupService
from mcvirtd.auth.login import Login
from mcvirtd.auth.passwords import Passwords
from mcvirtd.auth.rights import Rights
from mcvirtd.auth.service import AuditService, AuthService
from mcvirtd.auth.session_store import StoreSessions
from mcvirtd.auth.throttle import LoginThrottle
from mcvirtd.auth.tokens import Sessions
from mcvirtd.auth.users import UserService
from mcvirtd.cluster.admission import Admission
from mcvirtd.cluster.autostart import Autostart
from mcvirtd.cluster.elsewhere import BridgesElsewhere, locations_by_node
from mcvirtd.cluster.forwarding import Forwarding, PeerService, TasksElsewhere
from mcvirtd.cluster.keys import Keys
from mcvirtd.cluster.presence import Presence
from mcvirtd.cluster.reach import Reach, asking, looking
from mcvirtd.cluster.routing import Router
from mcvirtd.cluster.standing import Standing
from mcvirtd.drbd.whole import Drbd
from mcvirtd.host import network, systemd
from mcvirtd.hypervisor.moving import MovingVerbs
from mcvirtd.maintenance import Chore, Maintenance
from mcvirtd.migration.moves import Moves
from mcvirtd.network.service import NetworkService
from mcvirtd.rpc.guard import Guard, Published
from mcvirtd.rpc.publish import publish
from mcvirtd.rpc.server import Limits, Server, carry_on_this_connection
from mcvirtd.settings import Settings
from mcvirtd.state.records import DiskRecord, NodeRecord, VmRecord
from mcvirtd.state.replication import Replicator
from mcvirtd.state.store import Store
from mcvirtd.storage.disks import Disks
from mcvirtd.storage.fetching import Fetcher
from mcvirtd.storage.hard_drives import HardDriveService
from mcvirtd.storage.iso_service import IsoService
from mcvirtd.storage.isos import IsoLibrary
from mcvirtd.storage.nodes import backends_by_node
from mcvirtd.storage.service import StorageService
from mcvirtd.storage.uploads import Uploads
from mcvirtd.tasks.engine import Tasks
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.service import TaskService
from mcvirtd.tasks.settling import Settling
from mcvirtd.tasks.transaction import Journal
from mcvirtd.vm.connecting import hypervisor_of
from mcvirtd.vm.failover import Strays
from mcvirtd.vm.machines import Machines

log = logging.getLogger(__name__)

STATE_FILE = "state.db"
TRUST_FILE = "ca.pem"
_HOUR = 3600.0


class Daemon:
    """mcvirtd. `run` serves until SIGTERM or SIGINT; what is not done by then is settled at the next start."""

    def __init__(self, settings: Settings, *, simulate: bool = False) -> None:
        self._settings = settings
        self._simulate = simulate
        self._stopping = threading.Event()
        self._operations: dict[str, Published] = {}

    def run(self) -> int:
        """The whole life of the daemon; returns the exit status."""
        with contextlib.ExitStack() as stack:
            first_start.directories(self._settings.paths.state, self._settings.paths.run)
            identity = first_start.node_identity(self._settings.paths.state, self._settings.node.name)
            self._node = identity.name
            store = self._store = Store(self._settings.paths.state / STATE_FILE)
            stack.callback(store.close)
            first_start.first_records(store, identity)
            hypervisor, self._accelerator = hypervisor_of(self._settings.libvirt, self._node, simulate=self._simulate)
            stack.callback(hypervisor.close)
            self._build(store, hypervisor)
            self._settling.settle()
            server = self._serve(first_start.write_root_token(self._settings.paths.run))
            stack.callback(endpoint.withdraw, self._settings.paths.run)
            endpoint.announce(
                self._settings.paths.run, address=self._settings.listen.address, port=server.port, node=self._node
            )
            self._handle_signals(server)
            self._admission.serving(server.port)
            self._presence.start(server)
            self._replicator.start()
            self._drbd.start()
            self._maintenance.start()
            self._autostart.start()
            systemd.ready(f"Serving on port {server.port}")
            log.info("node %s serves on %s:%s", self._node, self._settings.listen.address, server.port)
            server.requestLoop(self._goes_on)
            systemd.stopping()
            log.info("stopping")
            self._autostart.stop()
            self._maintenance.stop()
            self._tasks.close()  # they may need the other nodes to undo what they began
            self._replicator.stop()
            self._drbd.stop()
            self._presence.stop()
            self._uploads.close()
            self._machines.consoles.close_idle(every=True)
            self._sessions.flush()
            server.close()
        return 0

    # --- building -----------------------------------------------------------------------------------------------------

    def _build(self, store: Store, hypervisor: MovingVerbs) -> None:
        node, settings = self._node, self._settings
        trust = settings.paths.run / TRUST_FILE
        self._keys = Keys(settings.paths.state, node, store, trust, listens=self._settings.listen.alone_at)
        presence = self._presence = Presence(
            store=store,
            node=node,
            keys=self._keys,
            hypervisor=hypervisor,
            accelerator=self._accelerator,
        )
        replicator = self._replicator = Replicator(node, store, presence.peers)
        store.replicate_with(replicator)
        self._bridges = BridgesElsewhere(store, node, presence.peers)
        replicator.replaced = self._tell_replaced
        presence.replication = replicator
        self._reach = Reach(
            node=node,
            members=presence.members.others,
            status=presence.peers.status,
            ask=asking(presence.peers),
            look=looking(presence.peers),
            leader=lambda: replicator.replica.leader,
        )
        journal = self._journal = Journal(store)
        self._locks = Locks()
        self._tasks = Tasks(store, journal, node, keep_days=settings.tasks.keep / 86400)
        self._rights = Rights(store)
        self._audit = Audit(store, node, keep_days=settings.audit.keep / 86400)
        self._sessions = Sessions(
            StoreSessions(store),
            idle_timeout=settings.session.idle_timeout,
            absolute_timeout=settings.session.absolute_timeout,
        )
        backends = self._backends = backends_by_node(node, settings.paths.state, simulate=self._simulate)
        self._drbd = Drbd(
            node=node,
            store=store,
            journal=journal,
            locks=self._locks,
            presence=presence,
            state_directory=settings.paths.state,
            run_directory=settings.paths.run,
            rate=settings.drbd.resync_rate,
            backends=backends,
            hypervisor=hypervisor,
        )
        self._disks = Disks(
            store=store,
            journal=journal,
            locks=self._locks,
            nodes=backends,
            node=node,
            used_paths=hypervisor.list_block_paths,
            storage_types=self._drbd.storage_types,
            replicated=self._drbd.disks,
            replicas=self._drbd.disks,
        )
        self._isos = IsoLibrary(settings.paths.state)
        self._isos.prepare()
        self._uploads = Uploads(self._isos, clock=time.monotonic)
        self._drbd.soundness.begin_due = lambda: self._by_itself("verification.verify_due")
        self._machines = Machines(
            node=node,
            store=store,
            journal=journal,
            locks=self._locks,
            hypervisor=hypervisor,
            accelerator=self._accelerator,
            disks=self._disks,
            isos=self._isos,
            console_directory=str(settings.paths.state / "console"),
            live=presence.live.of,
            replica=self._drbd.view.info,
            bridge_problem=lambda interface: " ".join(self._bridge_faults(interface)),
            bridges_at=self._bridges.at,
            nodes=self._reach,
            held=self._drbd.held,
        )
        self._moves = Moves(
            self._machines.ground,
            hypervisor=hypervisor,
            uri=settings.libvirt.uri,
            backends=backends,
            power=self._machines.power,
            accelerator=self._accelerator,
            peers=presence.peers,
            tasks=self._tasks,
            audit=self._audit,
            rights=self._rights,
            carry_on=carry_on_this_connection,
            stopping=self._stopping.is_set,
            door=self._run_for_peer,
            rows=self._machines.service.list,
            nodes=presence.nodes.list,
            drbd=self._drbd,
        )
        places = locations_by_node(backends, node, presence.peers)
        self._storage = StorageService(
            store=store, journal=journal, locks=self._locks, nodes=backends, node=node, everywhere=places
        )
        standing = Standing(node, replicator, lambda: store.all(NodeRecord))
        self._autostart = Autostart(
            store=store,
            vms=self._stopped_machines,
            start=self._start_machine,
            libvirt_ready=hypervisor.wait_connected,
            sure=standing.sure,
            bound=self._machines.bound,
            unsettled=self._moves.unsettled,
            coming=self._moves.coming,
            failed=self._tasks.failed,
        )
        expected = self._moves.arrivals.expects
        strays = Strays(self._machines.ground, sure=standing.sure, tell=self._tell_stray, expected=expected)
        self._admission = Admission(
            node=node,
            store=store,
            journal=journal,
            tasks=self._tasks,
            sessions=self._sessions,
            keys=self._keys,
            presence=presence,
            replicator=replicator,
            hypervisor=hypervisor,
            bridge_faults=self._bridge_faults,
            drbd_faults=lambda: self._drbd.here.outlook().faults,
            warnings=(self._autostart.warnings, strays.warnings, self._moves.draining.warnings),
        )
        self._settling = Settling(
            tasks=self._tasks,
            audit=self._audit,
            caught_up=replicator.catch_up,
            libvirt_answers=lambda: hypervisor.connected,
        )
        self._maintenance = Maintenance(
            [
                Chore("membership", 2.0, self._admission.settle, first=2.0),
                Chore("strays", 5.0, strays.settle, first=5.0),
                Chore("waiting", 5.0, self._moves.wait_on, first=2.0),
                Chore("moves", 1.0, lambda: self._moves.settle(self._settling.settle_of), first=2.0, lane="moves"),
                Chore("arrivals", 2.0, self._moves.arrivals.turn_away, first=2.0, lane="arrivals"),
                Chore("settle", 30.0, self._settling.settle_stuck, first=5.0, lane="settle"),
                Chore("consoles", 30.0, self._machines.consoles.close_idle, first=30.0),
                Chore("sessions", 30.0, lambda: self._sessions.purge(time.time()), first=30.0),
                Chore("prune tasks", _HOUR, self._tasks.prune, first=60.0),
                Chore("prune audit", _HOUR, self._audit.prune, first=60.0),
                Chore("certificate", _HOUR, presence.renew_certificate, first=_HOUR),
                Chore("listen", 5.0, presence.listen, first=5.0),
                Chore("drbd", 30.0, self._drbd.settle, first=30.0, lane="drbd"),
                Chore("release", 30.0, self._machines.release.settle, first=10.0, lane="release"),
                Chore("verifications", 30.0, self._drbd.soundness.tick, first=30.0, lane="verifications"),
            ]
        )
        self._drbd.returns.attend = lambda: self._maintenance.hurry("drbd", "settle", "release", "verifications")

    def _bridge_faults(self, interface: str) -> list[str]:
        return [] if self._simulate else network.bridge_faults(interface)

    # --- serving ------------------------------------------------------------------------------------------------------

    def _serve(self, root_token: str) -> Server:
        settings, store, presence = self._settings, self._store, self._presence
        passwords = Passwords()
        login = Login(
            store=store,
            sessions=self._sessions,
            passwords=passwords,
            throttle=LoginThrottle(),
            root_token=root_token,
            clock=time.time,
            own_addresses=self._settings.listen.alone_at,
        )
        self._guard = Guard(
            node=self._node,
            clock=time.time,
            sessions=login,
            rights=self._rights,
            tasks=self._tasks,
            audit=self._audit,
            router=Router(store, self._node, Forwarding(presence.peers)),
            vm_of_disk=self._vm_of_disk,
            members=presence.members,
            refuse_changes=self._admission.membership.refuse_changes,
        )
        tasks = TaskService(tasks=self._tasks, rights=self._rights, elsewhere=TasksElsewhere(presence.peers))
        services: list[object] = [
            self._machines.service,
            self._moves.service,
            HardDriveService(
                store=store,
                journal=self._journal,
                locks=self._locks,
                disks=self._disks,
                attachments=self._machines.changes,
                node=self._node,
            ),
            self._storage,
            IsoService(
                store=store,
                journal=self._journal,
                locks=self._locks,
                node=self._node,
                library=self._isos,
                uploads=self._uploads,
                fetcher=Fetcher(),
            ),
            NetworkService(store=store, bridge_faults=self._bridge_faults, elsewhere=self._bridges),
            self._drbd.service,
            AuthService(
                store=store, sessions=self._sessions, login=login, rights=self._rights, node=self._node, clock=time.time
            ),
            UserService(store=store, rights=self._rights, sessions=self._sessions, passwords=passwords, login=login),
            GroupService(store=store, rights=self._rights),
            AuditService(self._audit),
            presence.nodes,
            self._admission.service,
            tasks,
            self._drbd.soundness.service,
            self._drbd.split_brain,
            self._moves.draining,
            self._moves.sides,
        ]
        transport.configure()
        server = Server(
            settings.listen.address,
            settings.listen.port,
            node=self._node,
            context=self._keys.server_context,
            authenticate=self._admission.door(login.authenticate),
            limits=Limits(
                connections=settings.limits.connections,
                handshake_timeout=settings.limits.handshake_timeout,
                idle_timeout=settings.limits.idle_connection,
                message_size=settings.limits.message_size,
            ),
            member_at=presence.members.one_at,
        )
        for contract, service in zip(api.contracts(), services, strict=True):
            facade = publish(contract, service, self._guard, self._operations)
            server.register(facade, contract.object_id)  # type: ignore[attr-defined]
        peer_service = PeerService(
            live=presence.live,
            tasks=tasks,
            run=self._run_for_peer,
            replication=lambda: presence.replication,
            bridge_faults=self._bridge_faults,
            backends=self._backends(self._node),
            reaches=self._reach.how,
            drbd=self._drbd.here,
            finds=self._reach.finds,
            heard=presence.hear,
        )
        for contract, service in (
            (PeerApi, peer_service),
            (DrbdPeerApi, self._drbd.peer_service),
            (SplitPeerApi, self._drbd.split_peer),
            (ArrivalApi, self._moves.arrivals),
            (JoinApi, self._admission.newcomer),
            (MembershipApi, self._admission.leaver),
        ):
            server.register(publish(contract, service, self._guard), contract.object_id)
        return server

    def _run_for_peer(self, label: str, caller: Caller, arguments: dict[str, Any]) -> Reply | None:
        published = self._operations.get(label)
        if published is None or published.remote.runs_at is None:
            return None
        return self._guard.call(published, caller, (), arguments)

    def _vm_of_disk(self, disk: str) -> str | None:
        record = self._store.get(DiskRecord, disk)
        return record.vm if record is not None else None

    def _handle_signals(self, server: Server) -> None:
        def stop(number: int, frame: object) -> None:  # noqa: ARG001
            self._stopping.set()
            threading.Thread(target=server.transportServer.wakeup, daemon=True).start()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)

    def _goes_on(self) -> bool:
        # Called by the accept loop at least every two seconds: if it hangs, systemd's watchdog hears nothing.
        systemd.alive()
        return not self._stopping.is_set()

    # --- autostart ----------------------------------------------------------------------------------------------------

    def _stopped_machines(self) -> Mapping[str, AutoStart]:
        if self._admission.membership.removed is not None or self._admission.membership.joining is not None:
            return {}
        return {
            vm.name: vm.autostart
            for vm in self._store.all(VmRecord).values()
            if vm.node == self._node and not self._machines.domains.is_active(vm)
        }

    def _tell_replaced(self, leader: str) -> None:
        detail = f"on the word of who goes on without node {leader}"
        self._audit.record(current_caller(), "cluster.promote", leader, None, "", detail=detail)

    def _tell_stray(self, name: str, error: McvirtError | None) -> None:
        self._audit.record(Caller(user=SYSTEM), "vm.give_up", name, error, "")

    def _start_machine(self, name: str) -> str | None:
        return self._by_itself("vm.start", name=name)

    def _by_itself(self, label: str, **arguments: Any) -> str | None:
        """Do an operation as its users would have it done: as a task, and with an entry in the audit trail."""
        reply = self._guard.call(self._operations[label], Caller(user=SYSTEM, root=True), (), arguments)
        if reply.error is not None:
            raise from_wire(reply.error)
        return reply.task
