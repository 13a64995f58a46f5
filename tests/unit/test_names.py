"""What things may be called, for any input."""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcvirt import names
from mcvirt.errors import BadArgument

RULES: dict[Callable[[str], str], str] = {
    names.vm_name: r"(?!-)[A-Za-z0-9-]{3,64}(?<!-)",
    names.network_name: r"(?!-)[A-Za-z0-9-]{1,64}(?<!-)",
    names.backend_name: r"(?!-)[A-Za-z0-9-]{1,64}(?<!-)",
    names.group_name: r"(?!-)[A-Za-z0-9-]{1,64}(?<!-)",
    names.node_name: r"(?!-)[A-Za-z0-9-]{1,64}(?<!-)",
    names.user_name: r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}",
    names.volume_name: r"(?!-)[A-Za-z0-9_+.-]{1,100}",
    names.volume_group_name: r"(?!-)[A-Za-z0-9_+.-]{1,100}",
    names.interface_name: r"[A-Za-z0-9_.-]{1,15}",
}
NEAR_NAMES = st.text(alphabet="abcZ09-_.@+/ \n\0é", max_size=70) | st.text(max_size=70)


@pytest.mark.parametrize("check", RULES, ids=lambda check: check.__name__)
@given(text=NEAR_NAMES)
def test_what_is_accepted_is_unchanged_and_keeps_the_rule(check: Callable[[str], str], text: str) -> None:
    try:
        accepted = check(text)
    except BadArgument as error:
        assert str(error).isprintable()
        return
    assert accepted == text
    assert re.fullmatch(RULES[check], text)
    assert text not in (".", "..")


@pytest.mark.parametrize("check", RULES, ids=lambda check: check.__name__)
@given(data=st.data())
def test_what_keeps_the_rule_is_accepted_unless_reserved(check: Callable[[str], str], data: st.DataObject) -> None:
    text = data.draw(st.from_regex(re.compile(RULES[check], re.ASCII), fullmatch=True))
    try:
        assert check(text) == text
    except BadArgument as error:
        reserved = text in ("default", "root", ".", "..")
        reserved |= text.startswith(("mcv-", "drbd-hook-", "snapshot", "pvmove"))
        assert reserved or "LVM keeps" in error.why


@pytest.mark.parametrize(
    ("check", "name"),
    [
        (names.vm_name, "ab"),
        (names.vm_name, "web1\n"),
        (names.vm_name, "-web"),
        (names.vm_name, "web-"),
        (names.vm_name, "a" * 65),
        (names.vm_name, "wéb1"),
        (names.vm_name, "../etc"),
        (names.vm_name, "hd-0123456789abcdef01-0123456789abcdef012345"),
        (names.network_name, "default"),
        (names.backend_name, "default"),
        (names.user_name, "root"),
        (names.user_name, "mcv-node"),
        (names.user_name, "drbd-hook-1"),
        (names.user_name, "-rf"),
        (names.volume_name, ".."),
        (names.volume_name, "-y"),
        (names.volume_name, "snapshot0"),
        (names.volume_name, "pool_tmeta"),
        (names.volume_group_name, "vg/lv"),
        (names.interface_name, "a" * 16),
        (names.iso_name, "../x.iso"),
        (names.iso_name, ".hidden.iso"),
        (names.iso_name, ""),
        (names.directory, "relative"),
        (names.directory, "/a/../b"),
        (names.directory, "/a\nb"),
        (names.directory, "/" + "é" * 2500),
        (names.directory, "/\udcff"),
        (names.mac_address, "01:16:3e:12:34:56"),
        (names.mac_address, "ff:ff:ff:ff:ff:ff"),
        (names.mac_address, "00:00:00:00:00:00"),
        (names.mac_address, "00-16-3e-12-34-56"),
        (names.mac_address, "00:16:3e:12:34"),
    ],
)
def test_names_that_would_do_harm_are_refused(check: Callable[[str], str], name: str) -> None:
    with pytest.raises(BadArgument):
        check(name)


@given(st.text(alphabet="/.ab é", max_size=40))
def test_a_directory_is_spelt_in_one_way(path: str) -> None:
    try:
        spelt = names.directory(path)
    except BadArgument:
        return
    assert spelt == names.directory(spelt) == os.path.normpath("/" + path.lstrip("/"))


@given(st.text(max_size=40))
def test_an_iso_stays_in_its_directory(name: str) -> None:
    try:
        iso = names.iso_name(name)
    except BadArgument:
        return
    assert iso.lower().endswith(".iso") and "/" not in iso and not iso.startswith((".", "-")) and len(iso) < 255
    assert names.iso_name(iso) == iso


@given(st.text(max_size=200))
def test_anything_can_be_shown_in_one_short_line(text: str) -> None:
    shown = names.printable(text)
    assert shown.isprintable() and len(shown) <= 80


def test_new_addresses_and_ids_keep_their_own_rules() -> None:
    for _ in range(50):
        mac = names.new_mac_address()
        assert names.mac_address(mac) == mac
        assert names.mac_address(f" {mac.upper()} ") == mac
        for code in ("vm", "gp", "hd", "sb"):
            identity = names.new_id(code)
            assert names.object_id(identity, code, "object") == identity
    assert re.fullmatch(r"hd-[0-9a-f]{18}-[0-9a-f]{22}", names.new_id("hd"))
    with pytest.raises(BadArgument):
        names.object_id(names.new_id("vm"), "hd", "hard drive")
    with pytest.raises(BadArgument):
        names.object_id("hd-../../etc", "hd", "hard drive")
