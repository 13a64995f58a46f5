"""What the administrator may set in /etc/mcvirt/mcvirtd.toml, read once at the start."""

from __future__ import annotations

import difflib
import ipaddress
import socket
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mcvirt import names
from mcvirt.errors import BadArgument, SettingsRefused
from mcvirt.units import MIB, parse_duration, parse_size

DEFAULT_PATH = Path("/etc/mcvirt/mcvirtd.toml")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
ACCELERATORS = ("auto", "kvm", "tcg")
TASKS_KEEP = 30 * 86400
AUDIT_KEEP = 365 * 86400


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """Who this node is."""

    name: str


class Listen(msgspec.Struct, frozen=True, kw_only=True):
    """Where mcvirtd listens; port 0 takes any that is free."""

    address: str = "127.0.0.1"
    port: int = 9090

    @property
    def alone_at(self) -> tuple[str, ...]:
        """The address where only that one is listened on: then root on the node itself comes from there, too."""
        address = ipaddress.ip_address(self.address)
        return () if address.is_unspecified or address.is_loopback else (str(address),)


class Paths(msgspec.Struct, frozen=True, kw_only=True):
    """The directories of mcvirtd."""

    state: Path = Path("/var/lib/mcvirt")
    run: Path = Path("/run/mcvirt")


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """What is logged, to the journal."""

    level: str = "INFO"


class Libvirt(msgspec.Struct, frozen=True, kw_only=True):
    """Which libvirt is used, and what machines run on."""

    uri: str = "qemu:///system"
    accelerator: str = "auto"


class SessionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long a login lasts: unused, and altogether."""

    idle_timeout: int = 30 * 60
    absolute_timeout: int = 12 * 3600


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What clients may take up."""

    connections: int = 200
    message_size: int = 16 * MIB
    handshake_timeout: int = 10
    idle_connection: int = 600


class Drbd(msgspec.Struct, frozen=True, kw_only=True):
    """What verifying and copying replicated disks may take in a second, at most, in bytes."""

    resync_rate: int = 200 * MIB


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """For how long finished things are kept."""

    keep: int


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, each checked. Times are in seconds and sizes in bytes."""

    node: Node
    listen: Listen = Listen()
    paths: Paths = Paths()
    log: Log = Log()
    libvirt: Libvirt = Libvirt()
    session: SessionLimits = SessionLimits()
    limits: Limits = Limits()
    drbd: Drbd = Drbd()
    tasks: Keep = Keep(keep=TASKS_KEEP)
    audit: Keep = Keep(keep=AUDIT_KEEP)


def load(path: Path = DEFAULT_PATH, *, host_name: Callable[[], str] = socket.gethostname) -> Settings:
    """The settings in the file at *path*; the defaults if there is no such file.

    Raises SettingsRefused, which says everything that is wrong with them at once.
    """
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
    except FileNotFoundError:
        data = {}
    except OSError as error:
        raise _refused(path, [f"the file can't be read: {error.strerror}."]) from None
    except UnicodeDecodeError:
        raise _refused(path, ["the file is not UTF-8 text."]) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _refused(path, [f"the file is not TOML: {error}."]) from None
    return parse(data, path=path, host_name=host_name)


def parse(
    data: Mapping[str, Any],
    *,
    path: Path = DEFAULT_PATH,
    host_name: Callable[[], str] = socket.gethostname,
) -> Settings:
    """The settings that *data*, the content of such a file, stands for. *path* is only for the error."""
    problems: list[str] = []
    given = _flatten(data, problems)
    values: dict[str, dict[str, Any]] = {}
    for key, value in given.items():
        section, _, field = key.partition(".")
        try:
            values.setdefault(section, {})[field] = _READERS[key](value)
        except BadArgument as error:
            problems.append(f"{key}: {error.why}")
    if "node.name" not in given:
        name = host_name().split(".", 1)[0]
        try:
            values["node"] = {"name": names.node_name(name)}
        except BadArgument:
            problems.append(
                f"node.name: it is not set, and this machine's host name '{names.printable(name)}' can't be a node's:"
                " that has 1 to 64 letters, digits and dashes. Set node.name."
            )
    problems += _contradictions(values)
    if problems:
        raise _refused(path, problems)
    return Settings(
        node=Node(**values["node"]),
        listen=Listen(**values.get("listen", {})),
        paths=Paths(**values.get("paths", {})),
        log=Log(**values.get("log", {})),
        libvirt=Libvirt(**values.get("libvirt", {})),
        session=SessionLimits(**values.get("session", {})),
        limits=Limits(**values.get("limits", {})),
        drbd=Drbd(**values.get("drbd", {})),
        tasks=Keep(**{"keep": TASKS_KEEP, **values.get("tasks", {})}),
        audit=Keep(**{"keep": AUDIT_KEEP, **values.get("audit", {})}),
    )


def keys() -> tuple[str, ...]:
    """All keys that a settings file may have, dotted."""
    return tuple(_READERS)


def _refused(path: Path, problems: list[str]) -> SettingsRefused:
    return SettingsRefused(path=str(path), text=" ".join(problems), problems=problems)


def _flatten(data: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    sections = dict.fromkeys(key.partition(".")[0] for key in _READERS)
    found: dict[str, Any] = {}
    for section, content in data.items():
        if isinstance(content, dict) and section in sections:
            keys_here = {f"{section}.{field}": value for field, value in content.items()}
        elif section in sections:
            problems.append(f"{section}: it is a section. Write [{section}] in a line of its own, and its keys below.")
            continue
        elif isinstance(content, dict) and content:
            keys_here = {f"{section}.{field}": value for field, value in content.items()}
        else:
            keys_here = {section: content}
        for key, value in keys_here.items():
            if key in _READERS:
                found[key] = value
            else:
                problems.append(f"{names.printable(key)}: there is no such key.{_suggestion(key)}")
    return found


def _suggestion(key: str) -> str:
    near = difflib.get_close_matches(key, _READERS, n=1, cutoff=0.6)
    if not near:
        last = key.rpartition(".")[2]
        near = [known for known in _READERS if known.partition(".")[2] == last]
    return f" Did you mean {near[0]}?" if near else ""


def _contradictions(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    problems = []
    session = values.get("session", {})
    idle = session.get("idle_timeout", SessionLimits().idle_timeout)
    if idle > session.get("absolute_timeout", SessionLimits().absolute_timeout):
        problems.append("session.idle_timeout: it is longer than session.absolute_timeout.")
    paths = values.get("paths", {})
    if paths.get("state", Paths().state) == paths.get("run", Paths().run):
        problems.append("paths.run: it is the same directory as paths.state; what is in paths.run is lost at a reboot.")
    return problems


# --- one reader for each kind of value ----------------------------------------------------------------------------


def _bad(why: str) -> BadArgument:
    return BadArgument(what="setting", why=why)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _bad(f"{_shown(value)} is not text. Write it in quotes.")
    return value


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return names.printable(str(value))


def _whole(least: int, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            shown = f"'{names.printable(value)}'" if isinstance(value, str) else _shown(value)
            raise _bad(f"{shown} is not a whole number. Write one, without quotes.")
        if not least <= value <= most:
            raise _bad(f"{_shown(value)} is not from {least} to {most}.")
        return value

    return read


def _seconds(least: str, most: str) -> Callable[[object], int]:
    shortest, longest = parse_duration(least), parse_duration(most)

    def read(value: object) -> int:
        if isinstance(value, str):
            seconds = parse_duration(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            seconds = value
        else:
            raise _bad(f"{_shown(value)} is not a duration. Write a number and s, m, h or d in quotes, such as '90s'.")
        if not shortest <= seconds <= longest:
            shown = f"'{names.printable(value)}'" if isinstance(value, str) else f"{value} s"
            raise _bad(f"{shown} is not from {least} to {most}. Write a number and s, m, h or d, such as '{least}'.")
        return seconds

    return read


def _size(least: int, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if not isinstance(value, str):
            raise _bad(f"{_shown(value)} is not a size. Write a number and a unit in quotes, such as '16MiB'.")
        size = parse_size(value)
        if not least <= size <= most:
            raise _bad(f"'{value}' is not from {least // MIB} MiB to {most // MIB} MiB.")
        return size

    return read


def _one_of(*allowed: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        text = _text(value)
        for each in allowed:
            if each.lower() == text.lower():
                return each
        raise _bad(f"'{names.printable(text)}' is none of {', '.join(allowed)}.")

    return read


def _node_name(value: object) -> str:
    return names.node_name(_text(value))


def _address(value: object) -> str:
    text = _text(value)
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise _bad(f"'{names.printable(text)}' is not an IP address. 0.0.0.0 or :: listens on all of them.") from None


def _path(value: object) -> Path:
    path = Path(names.directory(_text(value)))
    if path == Path("/"):
        raise _bad("'/' can't be used. Write a directory of mcvirt's own.")
    return path


def _uri(value: object) -> str:
    text = _text(value)
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme.partition("+")[0] != "qemu" or not parts.path.strip("/") or not text.isprintable():
        raise _bad(f"'{names.printable(text)}' is not a URI of libvirt's QEMU driver, such as qemu:///system.")
    if parts.password is not None:
        raise _bad("a password must not stand in a URI.")
    return text


_READERS: dict[str, Callable[[Any], Any]] = {
    "node.name": _node_name,
    "listen.address": _address,
    "listen.port": _whole(0, 65535),
    "paths.state": _path,
    "paths.run": _path,
    "log.level": _one_of(*LOG_LEVELS),
    "libvirt.uri": _uri,
    "libvirt.accelerator": _one_of(*ACCELERATORS),
    "session.idle_timeout": _seconds("1m", "30d"),
    "session.absolute_timeout": _seconds("1m", "365d"),
    "limits.connections": _whole(4, 10000),
    "limits.message_size": _size(2 * MIB, 1024 * MIB),
    "limits.handshake_timeout": _seconds("1s", "5m"),
    "limits.idle_connection": _seconds("10s", "1d"),
    "drbd.resync_rate": _size(MIB, 4095 * MIB),  # the kernel takes no more
    "tasks.keep": _seconds("1d", "3650d"),
    "audit.keep": _seconds("1d", "36500d"),
}
