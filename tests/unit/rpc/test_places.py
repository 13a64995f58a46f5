from __future__ import annotations

import pytest

from mcvirtd.rpc.places import AT_THE_DOOR, Place, Places

MEMBER = "192.0.2.2"


@pytest.fixture
def places() -> Places:
    return Places(3, lambda address: address == MEMBER)


def all_taken(places: Places) -> list[Place]:
    taken = [places.take("198.51.100.9") for _ in range(3)]
    assert all(taken) and places.take("198.51.100.9") is None
    return [place for place in taken if place]


def test_a_place_is_free_again_once_it_was_given_back(places: Places) -> None:
    taken = all_taken(places)
    taken[0].give()
    again = places.take("198.51.100.10")
    assert again and not again.members_only


def test_a_node_takes_nobodys_place(places: Places) -> None:
    taken = all_taken(places)
    for _ in range(50):
        taken[0].recognise()
        taken[0] = places.take("198.51.100.9") or pytest.fail("the place was not free")
    assert places.take("198.51.100.9") is None


@pytest.mark.parametrize("address", [MEMBER, f"::ffff:{MEMBER}"])
def test_from_a_members_address_a_few_may_come_in_and_show_who_they_are(places: Places, address: str) -> None:
    all_taken(places)
    door = [places.take(address) for _ in range(AT_THE_DOOR)]
    assert all(place and place.members_only for place in door)
    assert places.take(address) is None
    for place in door:
        assert place
        place.recognise()
    recognised = places.take(address)
    assert recognised and recognised.members_only
    recognised.give()
    for place in door:
        assert place
        place.give()
    assert places.take("not-an-address") is None
