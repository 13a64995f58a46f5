"""The sending end of a migration's channels: sockets of this node that lead to the other one.

Every connection to one of them becomes a connection of mcvirtd's to the other mcvirtd, by mutual TLS with the members'
keys like any between nodes, and over the same port. Neither libvirtd nor QEMU listens to the network for it. No more
connections are taken than a migration makes, and to the other node's libvirt only our own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable

import msgspec

from mcvirt.errors import McvirtError, from_wire
from mcvirt.rpc.codec import Reply
from mcvirt.rpc.transport import Connection
from mcvirtd.migration import carrying, sockets
from mcvirtd.migration.calls import Calls
from mcvirtd.migration.sockets import CHANNELS, Channel

log = logging.getLogger(__name__)
_CARRY_WITHIN = 15.0
_reply = msgspec.json.Decoder(Reply)


class Tunnel:
    """The channels of the migration of machine *name*, from `open` to `close`. *dial* connects to the other node.

    *owner* is QEMU's user and group, *disks* how many disks have their data sent. *begun* once QEMU sends something.

    When the other end of libvirt's own channel goes, this end is held open (`lost`) until `release`: libvirt would take
    the end of it for a failure, and in the last moments of a migration nobody but the other node knows whether it is.
    """

    def __init__(self, name: str, owner: tuple[int, int], dial: Callable[[], Connection], disks: int) -> None:
        self.route = sockets.route(name)
        self.lost = threading.Event()
        self._name = name
        self._owner = owner
        self._dial = dial
        self._wanted: dict[Channel, int] = {"libvirt": 1, "memory": 1, "disks": disks}
        self.begun = False
        self._calls = Calls()
        self._calls_before: int | None = None  # those before the memory began to be sent
        self._released = threading.Event()
        self._closed = False
        self._lock = threading.Lock()
        self._far: set[ssl.SSLSocket] = set()
        self._listening: list[socket.socket] = []

    def open(self) -> None:
        """Listen."""
        sockets.prepare(self._owner)
        for channel in CHANNELS:
            made = sockets.listen(channel, self._name, self._owner)
            self._listening.append(made)
            threading.Thread(
                target=self._accept, args=(made, channel), name=f"tunnel-{channel}-{self._name}", daemon=True
            ).start()

    @property
    def asked_to_run(self) -> bool:
        """Whether libvirt on the other node may have been told to let the guest run.

        It is called to prepare, before the memory is sent, and then once all has been sent, and not in between.
        """
        return self._calls_before is not None and self._calls.count > self._calls_before

    def cut(self) -> None:
        """The other node does not answer: give up the connections to it."""
        with self._lock:
            far = list(self._far)
        for sock in far:
            carrying.end(sock)

    def release(self) -> None:
        """Let libvirt find the end of a channel that is `lost`."""
        self._released.set()

    def close(self) -> None:
        """End everything."""
        self._closed = True
        self.release()
        self.cut()
        for sock in self._listening:
            carrying.end(sock)
            sock.close()
        sockets.forget(self._name)

    def _accept(self, listening: socket.socket, channel: Channel) -> None:
        taken = 0
        while taken < self._wanted[channel] and not self._closed:
            try:
                plain, _ = listening.accept()
            except OSError:
                return
            if channel == "libvirt" and sockets.user_of(plain) != os.geteuid():
                plain.close()
                continue
            taken += 1
            if channel == "memory":
                self._calls_before = self._calls.count
            self.begun = self.begun or channel != "libvirt"
            threading.Thread(
                target=self._serve, args=(plain, channel), name=f"carry-{channel}-{self._name}", daemon=True
            ).start()
        listening.close()  # who comes now is refused

    def _serve(self, plain: socket.socket, channel: Channel) -> None:
        over = False
        try:
            over = self._carry(plain, channel)
        except (McvirtError, OSError) as error:
            log.info("the %s channel of %s broke: %s", channel, self._name, error)
        except Exception:
            log.exception("the %s channel of %s failed", channel, self._name)
        if channel == "libvirt" and not over and not self._closed:
            self.lost.set()
            self._released.wait()
        plain.close()

    def _carry(self, plain: socket.socket, channel: Channel) -> bool:
        connection = self._dial()
        try:
            arguments = {"name": self._name, "channel": channel}
            reply = _reply.decode(connection.call("arrival", "carry", arguments, timeout=_CARRY_WITHIN))
            if reply.error is not None:
                raise from_wire(reply.error)
            far = connection.socket()
            carrying.notice_silence(far)
            with self._lock:
                self._far.add(far)
            try:
                return carrying.carry(far, plain, self._calls.hear if channel == "libvirt" else None)
            finally:
                with self._lock:
                    self._far.discard(far)
        finally:
            with contextlib.suppress(OSError):
                connection.close()
