"""Whether a node is there: seen from this node, and through every other member that can be asked."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping

import msgspec

from mcvirt.errors import LeaderUnreachable, McvirtError
from mcvirt.types.arrival import Whereabouts
from mcvirtd.cluster.peers import DEFAULT_PORT, Peers, PeerStatus
from mcvirtd.cluster.tls import pinned_context
from mcvirtd.state.records import NodeRecord
from mcvirtd.state.replication import given_up

KNOCK_WITHIN = 3.0
MISSED_WITHIN = 8.0
"""How long it may take until a node that is gone is known not to answer: two heartbeats, on a busy machine."""
ASK_WITHIN = 10.0
_AGAIN_AFTER = 0.1

ANSWERS = "it answers"
ONLY_MACHINE = "its machine is on, though its mcvirtd does not answer"


def knock(address: str, port: int, within: float = KNOCK_WITHIN) -> bool:
    """Whether a machine at *address* says anything at all, be it that nothing listens at *port*."""
    try:
        socket.create_connection((address, port), timeout=within).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    except OSError:
        return False
    return True


def identify(address: str, port: int, fingerprint: str, within: float = KNOCK_WITHIN) -> str:
    """Why a node with the key *fingerprint* is not found at *address*, in a sentence; '' if it is."""
    try:
        with socket.create_connection((address, port), timeout=within) as plain:
            pinned_context(fingerprint).wrap_socket(plain, server_hostname=address).close()
    except OSError as error:
        reason = "it does not answer there in time" if isinstance(error, TimeoutError) else error.strerror or str(error)
        return f"{reason}."
    return ""


class Reach:
    """*members* gives the records of the other nodes, *leader* who orders the changes of the cluster.

    *ask* has nodes say how they reach another one, as `how` does, and *look* what their libvirt says of a machine.
    """

    def __init__(
        self,
        *,
        node: str,
        members: Callable[[], Mapping[str, NodeRecord]],
        status: Callable[[str], PeerStatus],
        ask: Callable[[list[str], str], Mapping[str, str | McvirtError]],
        look: Callable[[list[str], str], Mapping[str, Whereabouts | McvirtError]],
        leader: Callable[[], str],
        knock: Callable[[str, int], bool] = knock,
    ) -> None:
        self._node = node
        self._members = members
        self._status = status
        self._ask = ask
        self._look = look
        self._leader = leader
        self._knock = knock

    def how(self, node: str) -> str:
        """How this node knows that *node* is there, in words; '' if it does not."""
        record = self._members().get(node)
        if record is None or not record.address:
            return ANSWERS if self._status(node).reachable else ""
        began = time.monotonic()
        there = self._knock(record.address, record.port or DEFAULT_PORT)
        if not self._status(node).reachable:
            return ONLY_MACHINE if there else ""
        return ANSWERS if there or self._answers(node, began) else ""

    def _answers(self, node: str, since: float) -> bool:
        """Whether one that has answered so far answers again, or is missed: who has just gone is not there any more."""
        pause = threading.Event()
        while (status := self._status(node)).reachable:
            waited = time.monotonic() - since
            if (status.silent_for is not None and status.silent_for < waited) or waited > MISSED_WITHIN:
                return True
            pause.wait(_AGAIN_AFTER)
        return False

    def finds(self, node: str, address: str, port: int) -> str:
        """Why *node*, another member, is not found at *address*, in a sentence; '' if it is."""
        record = self._members().get(node)
        return identify(address, port, record.fingerprint) if record is not None else "it is no member."

    def witness(self, node: str) -> str:
        """Who knows that *node* is there, and how, in a sentence; '' if nobody who can be asked does."""
        how = self.how(node)
        if how:
            return f"node '{self._node}' reaches it ({how})."
        others = [name for name in self._members() if name != node and self._status(name).reachable]
        for name, answer in sorted(self._ask(others, node).items()):
            if isinstance(answer, str) and answer:
                return f"node '{name}' reaches it ({answer})."
        return ""

    def whereabouts(self, uuid: str) -> Mapping[str, Whereabouts | McvirtError]:
        """What the other members that answer have of the machine, by their names, or why one of them can't say."""
        return self._look([name for name in self._members() if self._status(name).reachable], uuid)

    def require_leader(self) -> None:
        """Raise LeaderUnreachable if a change can't be ordered now, because its leader does not answer."""
        leader = self._leader()
        if leader in given_up():
            return  # this node takes its place with the first change, if nobody reaches it
        if leader != self._node and not self._status(leader).reachable:
            raise LeaderUnreachable(leader=leader)


def asking(peers: Peers) -> Callable[[list[str], str], Mapping[str, str | McvirtError]]:
    """What has members say how they reach a node."""

    def ask(members: list[str], node: str) -> Mapping[str, str | McvirtError]:
        answers = peers.call_all(members, "reaches", {"node": node}, ASK_WITHIN)
        return {
            name: answer if isinstance(answer, McvirtError) else msgspec.json.decode(answer, type=str)
            for name, answer in answers.items()
        }

    return ask


def looking(peers: Peers) -> Callable[[list[str], str], Mapping[str, Whereabouts | McvirtError]]:
    """What has members say what their libvirt has of a machine."""

    def look(members: list[str], uuid: str) -> Mapping[str, Whereabouts | McvirtError]:
        answers = peers.call_all(members, "whereabouts", {"uuid": uuid}, ASK_WITHIN, "arrival")
        return {
            name: answer if isinstance(answer, McvirtError) else msgspec.json.decode(answer, type=Whereabouts)
            for name, answer in answers.items()
        }

    return look
