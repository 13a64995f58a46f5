"""DRBD's configuration as text: the file of a resource, and what all resources have in common. Nothing is written here.

Everything that goes into the text is checked on the way, also what a peer has sent: DRBD's language runs programs.
"""

from __future__ import annotations

import ipaddress
import re

import msgspec

from mcvirt import names
from mcvirt.errors import BadArgument
from mcvirt.units import KIB, MIB

DIRECTORY = "/etc/drbd.d"
GLOBAL_COMMON = "/etc/drbd.d/global_common.conf"
HANDLER = "/usr/local/lib/mcvirt/current/bin/mcvirt-drbd-handler"
SPOOL = "/var/lib/mcvirt/drbd"
SOCKET = "/run/mcvirt/drbd.sock"
MARK = "# Written by mcvirt, which writes it again: changes made here are lost."

FIRST_MINOR, LAST_MINOR = 1, 2**20 - 1
FIRST_PORT, LAST_PORT = 7789, 65535

HANDLERS = (
    *("fence-peer", "unfence-peer", "split-brain", "out-of-sync"),
    *("before-resync-target", "after-resync-target"),
)
"""The events that the kernel tells the handler program."""

_SECTOR = 512
_NAME = re.compile(r"mcvirt-[A-Za-z0-9-]{1,90}", re.ASCII)
_DEVICE = re.compile(r"/dev/[A-Za-z0-9_+.-]+(/[A-Za-z0-9_+.-]+)*", re.ASCII)
_SECRET = re.compile(r"[A-Za-z0-9]{16,64}", re.ASCII)
_MINOR = re.compile(r"\bdevice\s+minor\s+([0-9]{1,7});", re.ASCII)
_SHOWN_ADDRESS = re.compile(r"\baddress\s+(ipv[46])\s+([^\s;]+);", re.ASCII)
_MOST_RATE = re.compile(r"\bc-max-rate\s+([0-9]{1,9})k;", re.ASCII)
_ALGORITHM = re.compile(r"[a-z0-9][a-z0-9_()-]{0,62}", re.ASCII)
_PATH = re.compile(r"/[A-Za-z0-9_+./-]+", re.ASCII)


class Leg(msgspec.Struct, frozen=True, kw_only=True):
    """One node's side: *data* and *metadata* are paths of block devices there."""

    node: str
    address: str
    data: str
    metadata: str


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """One replicated hard drive: this node's leg and the other's."""

    name: str
    minor: int
    port: int
    secret: str
    local: Leg
    peer: Leg

    def __repr__(self) -> str:  # the secret is for the file alone
        return f"Resource({self.name}, minor {self.minor}, port {self.port}, {self.local.node}, {self.peer.node})"


class Handle(msgspec.Struct, frozen=True, kw_only=True):
    """What drbdsetup calls a resource by: its minor, or the connection from *local* to *peer*."""

    minor: int
    local: str
    peer: str


MOST_RATE = 200 * MIB
"""Bytes a second that comparing and copying may take, where nobody has set another limit."""


class Common(msgspec.Struct, frozen=True, kw_only=True):
    """What all resources have in common. Rates are in bytes a second; *algorithm* is a digest that the kernel has."""

    algorithm: str = "sha256"
    most_rate: int = MOST_RATE
    least_rate: int = 4 * MIB
    ping_timeout: float = 4.0
    handler: str = HANDLER
    spool: str = SPOOL
    socket: str = SOCKET


def resource_name(disk: str) -> str:
    """What the resource of hard drive *disk* (its ID) is called."""
    return checked_name(f"mcvirt-{disk}")


def checked_name(name: str) -> str:
    """*name*, if a resource of ours can be called so."""
    return _fitting(_NAME, name, "DRBD resource")


def metadata_size(size: int) -> int:
    """How many bytes of external metadata a device of *size* bytes needs; LVM rounds them up to its extents."""
    sectors = -(-size // _SECTOR)
    return (-(-sectors // 262144) * 8 + 72) * _SECTOR


def resource_text(resource: Resource, host: str) -> str:
    """The file of a resource on the machine that calls itself *host* (``uname -n``): drbdadm looks for that name."""
    name = checked_name(resource.name)
    secret = _fitting(_SECRET, resource.secret, "secret", show=False)
    return "\n".join(
        (
            MARK,
            f'resource "{name}" {{',
            "    net {",
            f'        shared-secret "{secret}";',
            "    }",
            *_leg(resource, resource.local, host),
            *_leg(resource, resource.peer, resource.peer.node),
            "}",
            "",
        )
    )


def _leg(resource: Resource, leg: Leg, host: str) -> list[str]:
    _within("DRBD minor", resource.minor, FIRST_MINOR, LAST_MINOR)
    _within("DRBD port", resource.port, 1, LAST_PORT)
    return [
        f'    on "{_host(host)}" {{',
        f"        device minor {resource.minor};",
        f'        disk "{_fitting(_DEVICE, leg.data, "device")}";',
        f'        meta-disk "{_fitting(_DEVICE, leg.metadata, "device")}";',
        f"        address {_address(leg.address)}:{resource.port};",
        "    }",
    ]


def addresses(resource: Resource) -> frozenset[str]:
    """The addresses of both sides, as they are in the file."""
    return frozenset(f"{_address(leg.address)}:{resource.port}" for leg in (resource.local, resource.peer))


def parse_handle(text: str) -> Handle | None:
    """The handle of the resource whose file has this text, as `resource_text` writes it; None if it is another one."""
    minors = set(_MINOR.findall(text))
    found = [":".join(words) for words in _SHOWN_ADDRESS.findall(text)]
    if len(minors) != 1 or len(found) != 2:
        return None
    return Handle(minor=int(minors.pop()), local=found[0], peer=found[1])


def parse_addresses(text: str) -> frozenset[str]:
    """Those that the kernel uses, by what ``drbdsetup show`` says; none while it is cut off."""
    return frozenset(" ".join(words) for words in _SHOWN_ADDRESS.findall(text))


def parse_most_rate(text: str) -> int | None:
    """The rate that a file as below says, in bytes a second; None if it says none."""
    found = _MOST_RATE.search(text)
    return int(found[1]) * KIB if found else None


def global_common_text(common: Common) -> str:
    """The file with what all resources have in common."""
    algorithm = _fitting(_ALGORITHM, common.algorithm, "algorithm")
    handler, spool, socket = (_fitting(_PATH, path, "path") for path in (common.handler, common.spool, common.socket))
    most, least = (max(1, rate // 1024) for rate in (common.most_rate, common.least_rate))
    return f"""{MARK}
global {{
    usage-count no;
    udev-always-use-vnr;
}}
common {{
    handlers {{
{"".join(f'        {event} "{handler} {event} {spool} {socket}";{chr(10)}' for event in HANDLERS)}    }}
    disk {{
        on-io-error detach;
        fencing resource-only;
        # The controller, and not a fixed rate: it gives way to what guests write.
        c-plan-ahead 20;
        c-fill-target 1M;
        c-min-rate {least}k;
        c-max-rate {most}k;
        resync-rate {most}k;
    }}
    net {{
        protocol C;
        allow-two-primaries no;
        after-sb-0pri disconnect;
        after-sb-1pri disconnect;
        after-sb-2pri disconnect;
        cram-hmac-alg {algorithm};
        verify-alg {algorithm};
        csums-alg {algorithm};
        # The kernel's half second is too short for a busy node: it splits the two sides during a migration.
        ping-timeout {round(common.ping_timeout * 10)};
        ping-int 5;
        connect-int 1;
        # Without it a new connection is looked at for as long as ping-timeout before it counts.
        socket-check-timeout 5;
    }}
}}
"""


def _address(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise BadArgument(what=f"address '{names.printable(text)}'", why="it is not an IP address.") from None
    return f"ipv6 [{address}]" if address.version == 6 else f"ipv4 {address}"


def _host(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}", name, re.ASCII):
        raise BadArgument(what=f"host name '{names.printable(name)}'", why="DRBD can't be told of it.")
    return name


def _within(what: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        raise BadArgument(what=f"{what} {number}", why=f"it must be between {least} and {most}.")


def _fitting(pattern: re.Pattern[str], text: str, what: str, *, show: bool = True) -> str:
    if not pattern.fullmatch(text):
        shown = f"{what} '{names.printable(text)}'" if show else what
        raise BadArgument(what=shown, why="it has characters that it can't have, or is too long or too short.")
    return text
