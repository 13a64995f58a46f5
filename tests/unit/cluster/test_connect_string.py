"""Connect strings: what goes in comes out, and whatever else is given is refused with one sentence."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcvirt.errors import ConnectStringRefused
from mcvirtd.cluster import connect_string
from mcvirtd.cluster.connect_string import ConnectString, Kept

NOW = 1_800_000_000.0
FIELDS: dict[str, Any] = {
    "name": "node2",
    "address": "192.0.2.2",
    "port": 9090,
    "fingerprint": "ab" * 32,
}


def made() -> tuple[str, Kept]:
    return connect_string.make(**FIELDS, now=NOW)


def with_content(**fields: Any) -> str:
    content = {"version": 1, **FIELDS, "secret": "s" * 43, "expires": NOW + 60, **fields}
    data = msgspec.json.encode(content)
    return connect_string.PREFIX + base64.urlsafe_b64encode(connect_string._checksum(data) + data).decode().rstrip("=")


def test_what_goes_in_comes_out() -> None:
    text, kept = made()
    found = connect_string.decode(text)
    assert {name: getattr(found, name) for name in FIELDS} == FIELDS
    assert kept.fits(found.secret, NOW)
    assert found.secret not in msgspec.json.encode(kept).decode()


def test_no_two_have_the_same_secret() -> None:
    (first, kept), (second, _) = made(), made()
    other = connect_string.decode(second).secret
    assert first != second and not kept.fits(other, NOW)


def test_line_breaks_and_blanks_that_a_terminal_adds_do_no_harm() -> None:
    text, _ = made()
    broken = f"  {text[:40]}\n{text[40:90]}\r\n {text[90:]}\n"
    assert connect_string.decode(broken) == connect_string.decode(text)


def test_it_can_be_pasted_into_a_shell() -> None:
    text, _ = made()
    assert all(char.isascii() and (char.isalnum() or char in "-_") for char in text)


@given(st.data())
def test_every_change_of_a_letter_is_noticed(data: st.DataObject) -> None:
    text, _ = made()
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("ABCXYZabcxyz0189-_=+/ü"))
    changed = text[:place] + letter + text[place + 1 :]
    if changed == text:
        return
    with pytest.raises(ConnectStringRefused):
        connect_string.decode(changed)


@given(st.data())
def test_every_cut_is_noticed(data: st.DataObject) -> None:
    text, _ = made()
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, len(text)))
    if end - begin == len(text):
        return
    with pytest.raises(ConnectStringRefused):
        connect_string.decode(text[begin:end])


@given(st.text(max_size=300) | st.text(alphabet="abcXYZ019-_", max_size=300).map(lambda text: "mcvirt-" + text))
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ConnectStringRefused):
        connect_string.decode(text)


def test_the_sentence_tells_what_to_do() -> None:
    text, _ = made()
    for wrong, said in (
        ("", "it is empty"),
        ("hello", "does not begin with 'mcvirt-'"),
        (text[:-9], "Copy all of it once more"),
        (text + "QUJD", "Copy all of it once more"),
        ("mcvirt-" + "A" * 5000, "far too long"),
        (with_content(version=2), "version 2, and this node knows version 1"),
        (with_content(port=0), "makes no sense"),
        (with_content(port="9090"), "makes no sense"),
        (with_content(address="example.org"), "makes no sense"),
        (with_content(name="../x"), "makes no sense"),
        (with_content(fingerprint="ab"), "makes no sense"),
        (with_content(secret=""), "makes no sense"),
    ):
        with pytest.raises(ConnectStringRefused, match=said) as refused:
            connect_string.decode(wrong)
        assert "\n" not in str(refused.value)


def test_no_refusal_says_the_secret() -> None:
    text = with_content(expires=0, secret="very-secret-indeed")
    with pytest.raises(ConnectStringRefused) as refused:
        connect_string.refuse_expired(connect_string.decode(text), NOW)
    assert "very-secret" not in str(refused.value) + repr(refused.value.fields)


def test_it_is_good_for_an_hour_by_the_clock_of_its_node() -> None:
    text, kept = made()
    secret = connect_string.decode(text).secret
    assert kept.fits(secret, NOW + 3599) and not kept.fits(secret, NOW + 3600)
    with pytest.raises(ConnectStringRefused, match=r"expired\. Have a new one made on node 'node2'"):
        connect_string.refuse_expired(connect_string.decode(text), NOW + 3600)
    connect_string.refuse_expired(connect_string.decode(text), NOW + 3599)


def test_other_secrets_do_not_fit() -> None:
    text, kept = made()
    secret = connect_string.decode(text).secret
    for wrong in ("", secret[:-1], secret + "x", kept.secret_hash, "\udcff"):
        assert not kept.fits(wrong, NOW)


def test_a_newer_one_may_say_more() -> None:
    assert isinstance(connect_string.decode(with_content(more="x")), ConnectString)
