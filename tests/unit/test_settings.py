"""The settings file: defaults, what may stand in it, and what is said of what may not."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcvirt.errors import SettingsRefused
from mcvirtd import settings
from mcvirtd.settings import Settings


def here() -> str:
    return "node1.example.org"


def write(directory: Path, text: str | bytes) -> Path:
    path = directory / "mcvirtd.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(path: Path, host: str = "node1") -> list[str]:
    with pytest.raises(SettingsRefused) as caught:
        settings.load(path, host_name=lambda: host)
    assert str(path) in str(caught.value)
    found = caught.value.problems
    assert all(problem in str(caught.value) for problem in found)
    return list(found)


def test_without_a_file_all_settings_have_their_defaults(tmp_path: Path) -> None:
    found = settings.load(tmp_path / "none.toml", host_name=here)
    assert found == Settings(node=settings.Node(name="node1"))
    assert (found.listen.address, found.listen.port) == ("127.0.0.1", 9090)
    assert found.paths.state == Path("/var/lib/mcvirt")
    assert (found.session.idle_timeout, found.session.absolute_timeout) == (1800, 43200)
    assert found.limits.message_size == 16 * 1024**2
    assert found == settings.load(write(tmp_path, ""), host_name=here)


def test_each_key_can_be_set(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [node]
        name = "alpha"
        [listen]
        address = "::"
        port = 0
        [paths]
        state = "/srv/mcvirt/"
        run = "/run/other"
        [log]
        level = "debug"
        [libvirt]
        uri = "qemu+unix:///system?socket=/run/x/libvirt-sock"
        accelerator = "TCG"
        [session]
        idle_timeout = "5m"
        absolute_timeout = 3600
        [limits]
        connections = 10
        message_size = "64MiB"
        handshake_timeout = "3s"
        idle_connection = "2m"
        [drbd]
        resync_rate = "1GiB"
        [tasks]
        keep = "7d"
        [audit]
        keep = "90d"
        """,
    )
    found = settings.load(path, host_name=here)
    flat = {
        f"{section}.{field}": value
        for section in found.__struct_fields__
        for field, value in msgspec.structs.asdict(getattr(found, section)).items()
    }
    assert flat == {
        "node.name": "alpha",
        "listen.address": "::",
        "listen.port": 0,
        "paths.state": Path("/srv/mcvirt"),
        "paths.run": Path("/run/other"),
        "log.level": "DEBUG",
        "libvirt.uri": "qemu+unix:///system?socket=/run/x/libvirt-sock",
        "libvirt.accelerator": "tcg",
        "session.idle_timeout": 300,
        "session.absolute_timeout": 3600,
        "limits.connections": 10,
        "limits.message_size": 64 * 1024**2,
        "limits.handshake_timeout": 3,
        "limits.idle_connection": 120,
        "drbd.resync_rate": 1024**3,
        "tasks.keep": 7 * 86400,
        "audit.keep": 90 * 86400,
    }
    assert set(flat) == set(settings.keys()), "a field has no reader, or a reader no field"
    assert not set(flat.values()) & set(
        msgspec.structs.asdict(Settings(node=settings.Node(name="node1")).session).values()
    )


def test_everything_that_is_wrong_is_said_at_once_with_its_key(tmp_path: Path) -> None:
    found = problems(
        write(
            tmp_path,
            """
            limts = 3
            [node]
            name = "-x-"
            [listen]
            adress = "10.0.0.1"
            port = "9090"
            [paths]
            state = "var/lib"
            [libvirt]
            uri = "xen:///"
            accelerator = "fast"
            [session]
            idle_timeout = "2 weeks"
            [limits]
            connections = true
            message_size = 16
            [storage]
            simulate = true
            """,
        )
    )
    said = {problem.partition(":")[0]: problem for problem in found}
    assert set(said) == {
        "limts",
        "node.name",
        "listen.adress",
        "listen.port",
        "paths.state",
        "libvirt.uri",
        "libvirt.accelerator",
        "session.idle_timeout",
        "limits.connections",
        "limits.message_size",
        "storage.simulate",
    }
    assert "Did you mean listen.address?" in said["listen.adress"]
    assert "without quotes" in said["listen.port"]
    assert all(problem.endswith((".", "?")) for problem in found)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[listen]\nport = 65536", "listen.port"),
        ("[listen]\nport = -1", "listen.port"),
        ("[listen]\naddress = 'localhost'", "listen.address"),
        ("[tasks]\nkeep = 30", "tasks.keep"),
        ("[session]\nidle_timeout = '13h'", "session.idle_timeout"),
        ("[session]\nidle_timeout = 0", "session.idle_timeout"),
        ("[session]\nidle_timeout = 1.5", "session.idle_timeout"),
        ("[limits]\nmessage_size = '1kB'", "limits.message_size"),
        ("[paths]\nrun = '/'", "paths.run"),
        ("[paths]\nrun = '/var/lib//mcvirt/'", "paths.run"),
        ("[paths]\nstate = ['/a']", "paths.state"),
        ("[libvirt]\nuri = 'qemu://user:geheim@host/system'", "libvirt.uri"),
        ("listen = 3", "listen"),
        ("[[listen]]\nport = 1", "listen"),
        ("[log]\nlevel = {a = 1}", "log.level"),
        ("port = 3", "port"),
    ],
)
def test_a_bad_value_is_one_sentence_about_its_key(tmp_path: Path, text: str, key: str) -> None:
    found = problems(write(tmp_path, text))
    assert len(found) == 1
    assert found[0].startswith(f"{key}: ")
    assert "geheim" not in found[0]


@pytest.mark.parametrize("text", [b"[listen\n", b"\xff\xfe", b"a = " + b"[" * 3000, b"\0"])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, text: bytes) -> None:
    assert len(problems(write(tmp_path, text))) == 1


def test_a_directory_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (found,) = problems(tmp_path)
    assert "Is a directory" in found


def test_a_host_name_that_no_node_can_have_is_refused_unless_a_name_is_set(tmp_path: Path) -> None:
    (found,) = problems(tmp_path / "none", host="my_host")
    assert "Set node.name" in found
    assert settings.load(write(tmp_path, "[node]\nname = 'n1'"), host_name=lambda: "my_host").node.name == "n1"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["node", "listen", "limits", "x"]) | st.text(max_size=8), VALUES, max_size=4))
def test_any_content_gives_settings_or_is_refused(data: dict[str, object]) -> None:
    try:
        settings.parse(data, host_name=here)
    except SettingsRefused as error:
        assert error.problems
