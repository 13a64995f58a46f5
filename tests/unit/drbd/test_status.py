"""What the real kernel said, line by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcvirt.types.drbd import ResourceState
from mcvirtd.drbd.status import Event, Picture, Progress, parse, parse_progress

GOLDEN = Path(__file__).with_name("golden")
NAME = "mcvirt-hd-t1"


def events(file: str) -> list[Event]:
    return [event for line in (GOLDEN / file).read_text().splitlines() if (event := parse(line)) is not None]


def states(file: str) -> list[ResourceState | None]:
    picture = Picture()
    found = []
    for event in events(file):
        picture.apply(event)
        found.append(picture.state(NAME))
    return found


def test_every_line_of_the_kernel_is_understood() -> None:
    for file in ("events-node1.txt", "events-node2.txt"):
        assert len(events(file)) == len((GOLDEN / file).read_text().splitlines())


def test_a_line_is_taken_apart() -> None:
    event = parse(
        "2026-11-23T01:40:12.856751+00:00 create device name:r0 volume:0 minor:1 disk:Diskless backing_dev:/dev/a:b"
    )
    assert event is not None
    assert (event.verb, event.kind, event.resource) == ("create", "device", "r0")
    assert event.at == "2026-11-23T01:40:12.856751+00:00"
    assert event.fields == {"volume": "0", "minor": "1", "disk": "Diskless", "backing_dev": "/dev/a:b"}


@pytest.mark.parametrize(
    "line", ["", "exists", "rubbish here", "exists resource", "2026-11-23T01:40:12 explode resource name:x", "\0 \xff"]
)
def test_other_lines_tell_of_nothing(line: str) -> None:
    assert parse(line) is None


def test_a_resource_comes_up_is_connected_and_called_equal() -> None:
    seen = [state for state in states("events-node1.txt") if state is not None]
    assert seen[0] == ResourceState(name=NAME, role="Secondary")
    first = next(state for state in seen if state.connected)
    assert (first.disk, first.peer_disk, first.out_of_sync) == ("Inconsistent", "Inconsistent", 65280 * 1024)
    good = next(state for state in seen if state.both_good)
    assert good == ResourceState(
        name=NAME,
        minor=1,
        role="Secondary",
        peer_role="Secondary",
        connection="Connected",
        replication="Established",
        disk="UpToDate",
        peer_disk="UpToDate",
        size=64 * 1024**2,
    )


def test_a_handshake_is_no_connection_yet() -> None:
    greeted = [state for state in states("events-node1.txt") if state and state.connection == "Connected"]
    assert not greeted[0].connected
    assert greeted[1].connection == "Connected"


def test_both_sides_are_seen_verifying_and_copying() -> None:
    one = [state for state in states("events-node1.txt") if state]
    two = [state for state in states("events-node2.txt") if state]
    assert {state.replication for state in one if state.checking} == {"VerifyS"}
    assert {state.replication for state in two if state.checking} == {"VerifyT"}
    assert {state.replication for state in one if state.copying} == {"SyncSource"}
    assert {state.replication for state in two if state.copying} == {"SyncTarget"}
    assert {state.out_of_sync for state in two if state.copying} == {8 * 1024, 64 * 1024**2}
    assert one[-1].both_good
    assert one[-1].out_of_sync == 0


def test_a_resource_that_was_taken_down_is_none() -> None:
    assert None in states("events-node2.txt")[10:]
    assert states("events-node2.txt")[-1] is not None


def test_a_new_connection_knows_nothing_of_the_one_before() -> None:
    picture = Picture()
    for line in (
        f"exists resource name:{NAME} role:Primary suspended:no",
        f"exists connection name:{NAME} connection:Connected role:Primary",
        f"exists peer-device name:{NAME} replication:Established peer-disk:UpToDate out-of-sync:8",
        f"destroy peer-device name:{NAME} volume:0",
        f"destroy connection name:{NAME}",
    ):
        event = parse(line)
        assert event is not None
        picture.apply(event)
    state = picture.state(NAME)
    assert state == ResourceState(name=NAME, role="Primary")


def told(*lines: str) -> ResourceState | None:
    """What a resource is after the lines of a program that has just begun."""
    picture = Picture()
    for line in lines:
        event = parse(line)
        assert event is not None
        picture.apply(event)
    return picture.state(NAME)


def test_what_existed_when_the_program_began_does_not_undo_the_news_that_came_before_it() -> None:
    """drbdsetup joins the kernel's group first and asks what exists then: its answers come one by one, with news
    between them, and each line has only what differs from the line before about the same thing."""
    begun = (
        f"exists resource name:{NAME} role:Secondary suspended:no",
        f"change connection name:{NAME} connection:Connected role:Secondary congested:no",
        f"change peer-device name:{NAME} volume:0 replication:Established peer-disk:Inconsistent out-of-sync:64",
        f"exists connection name:{NAME}",
        f"exists device name:{NAME} volume:0 minor:7 disk:Inconsistent size:64",
    )
    met = ResourceState(
        name=NAME,
        minor=7,
        role="Secondary",
        peer_role="Secondary",
        connection="Connected",
        replication="Established",
        disk="Inconsistent",
        peer_disk="Inconsistent",
        size=64 * 1024,
        out_of_sync=64 * 1024,
    )
    assert told(*begun, f"exists peer-device name:{NAME} volume:0", "exists -") == met
    stale = f"exists peer-device name:{NAME} volume:0 replication:Off peer-disk:DUnknown"
    assert told(*begun, stale, "exists -") == met
    news = f"change peer-device name:{NAME} volume:0 replication:VerifyS"
    after = told(*begun, stale, "exists -", news)
    assert after is not None
    # The program compares with what it wrote last, and does not write what is as it was in that.
    assert (after.replication, after.peer_disk) == ("VerifyS", "DUnknown")


def test_what_has_gone_while_all_that_exists_was_told_does_not_come_back() -> None:
    begun = (
        f"exists resource name:{NAME} role:Secondary suspended:no",
        f"destroy connection name:{NAME}",
        f"exists connection name:{NAME} connection:Connected role:Secondary",
    )
    state = told(*begun, "exists -")
    assert state is not None and state.connection == "StandAlone"
    assert told(f"destroy resource name:{NAME}", *begun, "exists -") is None
    made = told(*begun, "exists -", f"create connection name:{NAME} role:Unknown")
    assert made is not None and (made.connection, made.peer_role) == ("Connected", "Unknown")


def test_a_split_is_known_until_the_sides_take_each_other_again() -> None:
    picture = Picture()

    def hear(line: str) -> ResourceState:
        event = parse(line)
        assert event is not None
        picture.apply(event)
        state = picture.state(NAME)
        assert state is not None
        return state

    hear(f"exists resource name:{NAME} role:Primary suspended:no")
    assert hear(f"call helper name:{NAME} helper:split-brain").split_brain
    assert hear(f"change connection name:{NAME} connection:StandAlone").split_brain
    assert hear(f"change connection name:{NAME} connection:Connected").split_brain
    picture.apply(Event(verb="destroy", kind="resource", resource=NAME))
    assert hear(f"create resource name:{NAME} role:Secondary suspended:no").split_brain
    assert not hear(f"change peer-device name:{NAME} replication:WFBitMapS").split_brain


def test_progress_is_read_where_something_goes_on() -> None:
    text = (GOLDEN / "proc-drbd.txt").read_text()
    assert parse_progress(text) == {
        1: Progress(out_of_sync=51200 * 1024, read=79132 * 1024, left=51200 * 1024, done=29.5, seconds_left=3),
        2: Progress(out_of_sync=8 * 1024, read=120440 * 1024, left=13188 * 1024, done=82.4, seconds_left=1),
        3: Progress(out_of_sync=0, read=129272 * 1024),
    }
    assert parse_progress("") == {}
