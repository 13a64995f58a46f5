"""Several nodes on one wire: each in its own network namespace, joined by a bridge in a namespace of its own.

    with ClusterNodes(directory, 3, simulate=True) as cluster:
        cluster[1].mcvirt("list")
        cluster.cut(2)

Node 1 is node1 at 10.77.0.1, and so on. A cut is silent: frames are dropped at the bridge while every link stays up,
and the neighbours' hardware addresses are fixed, so that no kernel ever reports an unreachable host.
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from cryptography import x509

from mcvirtd.auth import first_start
from mcvirtd.cluster import pki
from mcvirtd.state.records import ClusterRecord, NodeRecord, Record
from mcvirtd.state.store import Store
from tests.node.mcvirt_node import McvirtNode

PORT = 9090
CLUSTER_ID = "11111111-2222-4333-8444-555555555555"


class ClusterNodes:
    """*count* nodes. `start` starts hosts and network, forms the cluster by hand if *formed*, and starts all daemons.

    Without *formed* the nodes are blank, each a cluster of one that can reach the others: for tests of joining.
    *records* are put into every node's state before it starts; *names* are for nodes that are called otherwise.
    """

    def __init__(
        self,
        directory: Path,
        count: int,
        *,
        simulate: bool = False,
        formed: bool = True,
        capabilities: Path | None = None,
        settings: str = "",
        records: Sequence[Record] = (),
        module: str = "mcvirtd.main",
        names: Mapping[int, str] | None = None,
        log_level: str = "DEBUG",
    ) -> None:
        self.directory = directory.absolute()
        self._formed = formed
        self._records = records
        self._switch: subprocess.Popen[bytes] | None = None
        self.nodes = {
            number: McvirtNode(
                self.directory / f"node{number}",
                (names or {}).get(number, f"node{number}"),
                simulate=simulate,
                capabilities=capabilities,
                settings=settings,
                port=PORT,
                module=module,
                log_level=log_level,
            )
            for number in range(1, count + 1)
        }

    def __getitem__(self, number: int) -> McvirtNode:
        return self.nodes[number]

    def __iter__(self) -> Iterator[McvirtNode]:
        return iter(self.nodes.values())

    def __enter__(self) -> ClusterNodes:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def address(number: int) -> str:
        """The cluster address of that node."""
        return f"10.77.0.{number}"

    def start(self) -> None:
        """Start everything; what was begun is ended again if that fails."""
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._start_switch()
            self._each(lambda number: self[number].start_host())
            for number in self.nodes:
                self.attach(number)
            if self._formed:
                self.form()
            self._each(lambda number: self[number].start_daemon())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End everything; the directories stay."""
        try:
            for number in self.nodes:
                self.resume(number)
            self._each(lambda number: self[number].close())
        finally:
            switch, self._switch = self._switch, None
            if switch is not None:
                assert switch.stdin is not None and switch.stdout is not None
                switch.stdin.close()
                switch.wait(10)
                switch.stdout.close()

    def _each(self, work: Callable[[int], None]) -> None:
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            for _ in pool.map(work, self.nodes):
                pass

    # --- the wire ---------------------------------------------------------------------------------------------------

    def _start_switch(self) -> None:
        # It says that it is in its namespace, and ends with its standard input, and so with us.
        argv = ["unshare", "--net", "--", "sh", "-c", "echo ready; cat"]
        self._switch = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._switch.stdout is not None
        assert self._switch.stdout.readline() == b"ready\n"
        self._ip("link", "add", "wire", "type", "bridge")
        self._ip("link", "set", "wire", "up")

    def _ip(self, *argv: str) -> None:
        self._on_switch("ip", *argv)

    def _on_switch(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        assert self._switch is not None
        enter = ["nsenter", "--target", str(self._switch.pid), "--net", "--"]
        result = subprocess.run([*enter, *argv], capture_output=True, text=True, timeout=20, check=False)
        if check and result.returncode:
            raise AssertionError(f"{' '.join(argv)}: {result.stderr}")
        return result

    def attach(self, number: int) -> None:
        """Plug a node whose host has been started in."""
        port, host = f"port{number}", self[number].host
        self._ip(
            *("link", "add", port, "address", _mac(number + 128), "type", "veth"),
            *("peer", "name", "eth0", "address", _mac(number), "netns", str(host.pid)),
        )
        self._ip("link", "set", port, "master", "wire", "up")
        host.run(["ip", "address", "add", f"{self.address(number)}/24", "dev", "eth0"])
        host.run(["ip", "link", "set", "eth0", "up"])
        for other in self.nodes:
            if other != number:
                neighbour = ["lladdr", _mac(other), "dev", "eth0", "nud", "permanent"]
                host.run(["ip", "neighbour", "replace", self.address(other), *neighbour])

    def cut(self, number: int) -> None:
        """Nothing that the node sends arrives any more, and nothing reaches it; nobody is told."""
        self._ip("link", "set", f"port{number}", "nomaster")

    def heal(self, number: int) -> None:
        """Undo `cut`."""
        self._ip("link", "set", f"port{number}", "master", "wire")

    def delay(self, number: int, milliseconds: int) -> bool:
        """Delay what reaches the node; False if the kernel can't."""
        what = ["qdisc", "replace", "dev", f"port{number}", "root", "netem", "delay", f"{milliseconds}ms"]
        return self._on_switch("tc", *what, check=False).returncode == 0

    # --- daemons ----------------------------------------------------------------------------------------------------

    def pause(self, number: int) -> None:
        """The daemon stops doing anything (SIGSTOP), its connections staying open."""
        self[number].pause_daemon()

    def resume(self, number: int) -> None:
        """Undo `pause`; nothing happens to a daemon that does not run."""
        self[number].resume_daemon()

    # --- a cluster by hand --------------------------------------------------------------------------------------------

    def form(self) -> None:
        """Make one cluster of the blank nodes, whose daemons do not run: one CA, and the same records everywhere.

        node1 is the leader.
        """
        members: list[Record] = []
        first = self[1].state_dir / pki.DIRECTORY
        for number, node in self.nodes.items():
            node.state_dir.mkdir(parents=True, exist_ok=True)
            directory = node.state_dir / pki.DIRECTORY
            if number > 1:
                directory.mkdir(mode=0o700)
                for name in ("ca.key", "ca.pem"):
                    (directory / name).write_bytes((first / name).read_bytes())
                    (directory / name).chmod(0o600 if name == "ca.key" else 0o644)
            address = self.address(number)
            identity = pki.ensure(directory, node.name, [address])
            members.append(
                NodeRecord(
                    name=node.name,
                    id=first_start.node_identity(node.state_dir, node.name).id,
                    address=address,
                    port=PORT,
                    fingerprint=identity.key_fingerprint,
                )
            )
        group_ids = {name: str(uuid.uuid4()) for name in ("user", "owner")}
        for node in self:
            self._write_records(node, [*members, *self._records], group_ids)

    def _write_records(self, node: McvirtNode, records: Sequence[Record], group_ids: dict[str, str]) -> None:
        from mcvirtd.state.log import StateLog
        from mcvirtd.state.records import GroupRecord

        store = Store(node.state_dir / "state.db")
        try:
            first_start.first_records(store, first_start.node_identity(node.state_dir, node.name))
            with store.change() as change:
                for name, made in group_ids.items():
                    change.edit(GroupRecord, name, id=made)
                change.put(ClusterRecord(id=CLUSTER_ID, leader="node1"))
                for record in records:
                    change.put(record)
            StateLog(store, "node1")  # makes the first epoch, which node1 leads
        finally:
            store.close()


def certificate(node: McvirtNode) -> x509.Certificate:
    """The node's own certificate."""
    return x509.load_pem_x509_certificate((node.state_dir / pki.DIRECTORY / "node.crt").read_bytes())


def _mac(number: int) -> str:
    return f"02:77:00:00:00:{number:02x}"
