"""The text that DRBD reads, and what never gets into it."""

from __future__ import annotations

import msgspec
import pytest

from mcvirt.errors import BadArgument
from mcvirt.units import GIB, MIB
from mcvirtd.drbd import commands, config
from mcvirtd.drbd.config import Common, Leg, Resource

SECRET = "0123456789abcdef0123456789abcdef"


def leg(number: int, address: str | None = None) -> Leg:
    return Leg(
        node=f"node{number}",
        address=address or f"10.9.0.{number}",
        data="/dev/vg0/mcvirt-hd-1-drbd-raw",
        metadata="/dev/vg0/mcvirt-hd-1-drbd-meta",
    )


RESOURCE = Resource(name="mcvirt-hd-1", minor=3, port=7790, secret=SECRET, local=leg(1), peer=leg(2))


def test_a_resource_is_written() -> None:
    assert config.resource_text(RESOURCE, "box1.example.org") == (
        f'''{config.MARK}
resource "mcvirt-hd-1" {{
    net {{
        shared-secret "{SECRET}";
    }}
    on "box1.example.org" {{
        device minor 3;
        disk "/dev/vg0/mcvirt-hd-1-drbd-raw";
        meta-disk "/dev/vg0/mcvirt-hd-1-drbd-meta";
        address ipv4 10.9.0.1:7790;
    }}
    on "node2" {{
        device minor 3;
        disk "/dev/vg0/mcvirt-hd-1-drbd-raw";
        meta-disk "/dev/vg0/mcvirt-hd-1-drbd-meta";
        address ipv4 10.9.0.2:7790;
    }}
}}
'''
    )


def test_ipv6_is_written_as_drbd_wants_it() -> None:
    text = config.resource_text(msgspec.structs.replace(RESOURCE, peer=leg(2, "fd00::2")), "node1")
    assert "address ipv6 [fd00::2]:7790;" in text


@pytest.mark.parametrize(
    "change",
    [
        {"name": "mcvirt-x { handlers"},
        {"name": "r0"},
        {"minor": 0},
        {"port": 70000},
        {"secret": 'x"; handlers { fence-peer "reboot'},
        {"secret": "tooshrt"},
        {"peer": msgspec.structs.replace(leg(2), data='/dev/vg0/x"; } handlers { split-brain "id')},
        {"peer": msgspec.structs.replace(leg(2), data="/etc/passwd")},
        {"peer": msgspec.structs.replace(leg(2), metadata="/dev/../etc/x y")},
        {"peer": leg(2, "10.9.0.2; }")},
        {"peer": msgspec.structs.replace(leg(2), node="node2\n}")},
    ],
)
def test_nothing_gets_out_of_its_place(change: dict[str, object]) -> None:
    with pytest.raises(BadArgument) as refused:
        config.resource_text(msgspec.structs.replace(RESOURCE, **change), "node1")
    assert str(change.get("secret", "\0")) not in str(refused.value)


def test_the_secret_is_not_shown_by_accident() -> None:
    assert SECRET not in f"{RESOURCE} {RESOURCE!r} {[RESOURCE]}"


@pytest.mark.parametrize(("size", "sectors"), [(1, 80), (128 * MIB, 80), (128 * MIB + 1, 88), (16 * GIB, 72 + 8 * 128)])
def test_metadata_has_room_for_the_bitmap(size: int, sectors: int) -> None:
    assert config.metadata_size(size) == sectors * 512


def test_what_is_common_discards_nothing_and_reboots_nobody() -> None:
    text = config.global_common_text(Common(algorithm="sha1", most_rate=10 * MIB))
    handler = f"{config.HANDLER} split-brain {config.SPOOL} {config.SOCKET}"
    for line in (
        *("usage-count no;", "protocol C;", "allow-two-primaries no;", "ping-timeout 40;", "fencing resource-only;"),
        *("after-sb-0pri disconnect;", "after-sb-1pri disconnect;", "after-sb-2pri disconnect;"),
        *("verify-alg sha1;", "c-max-rate 10240k;", f'split-brain "{handler}";'),
    ):
        assert line in text
    assert "reboot" not in text
    assert "halt" not in text
    with pytest.raises(BadArgument):
        config.global_common_text(Common(algorithm="sha1; }"))
    with pytest.raises(BadArgument):
        config.global_common_text(Common(handler='/bin/x"; y "'))


def test_no_secret_and_no_foreign_name_is_among_the_words() -> None:
    assert commands.create_metadata("mcvirt-hd-1") == ["drbdadm", "--", "--force", "create-md", "mcvirt-hd-1"]
    assert commands.connect("mcvirt-hd-1") == ["drbdadm", "connect", "mcvirt-hd-1"]
    handle = config.parse_handle(config.resource_text(RESOURCE, "node1"))
    assert handle is not None
    way = ["ipv4:10.9.0.1:7790", "ipv4:10.9.0.2:7790"]
    assert commands.two_primaries(handle, True) == ["drbdsetup", "net-options", *way, "--allow-two-primaries=yes"]
    assert commands.secondary(handle) == ["drbdsetup", "secondary", "3"]
    with pytest.raises(BadArgument):
        commands.up("all")


def test_a_file_that_is_not_ours_has_no_handle() -> None:
    text = config.resource_text(RESOURCE, "node1")
    sixth = msgspec.structs.replace(RESOURCE, local=leg(1, "fd00::1"), peer=leg(2, "fd00::2"))
    found = config.parse_handle(config.resource_text(sixth, "node1"))
    assert found is not None
    assert found.peer == f"ipv6:[fd00::2]:{RESOURCE.port}"
    assert config.parse_handle(text.replace("minor", "/dev/drbd")) is None
    assert config.parse_handle(text.partition("}")[0]) is None
    assert config.parse_handle("") is None
