from __future__ import annotations

import ast
import shlex
from pathlib import Path

import pytest

import mcvirt_client.cli
from mcvirt_client.cli import catalog, parser
from mcvirt_client.cli.catalog import next_word
from mcvirt_client.cli.manpage import every_command
from mcvirt_client.cli.report import UsageError

COMMANDS = dict(every_command())
EXAMPLES = [(path, example) for path, command in COMMANDS.items() for example in command.examples]
KNOWN = """
list, info, create, delete, start, stop, reset, shutdown, register, failover, unregister, update, lock, migrate, move,
console, verify, resync, drbd attach, drbd split-brain,
hard-drive list, hard-drive create, hard-drive attach, hard-drive detach, hard-drive import, hard-drive delete,
iso list, iso add, iso delete, network list, network create, network delete,
storage list, storage create, storage add, storage delete, storage add-node, storage remove-node,
user list, user create, user delete, user change-password, user add-permission, user remove-permission,
group list, group create, group delete, group add-permission, group remove-permission, group add-user,
group remove-user, permission, node, node drain, cluster get-connect-string, cluster add-node, cluster add,
cluster remove-node, cluster promote, cluster conflicts, cluster reset, task list, task watch, task cancel,
session list, session revoke,
drbd enable, drbd list, login, logout, whoami, audit list, clear-method-lock, exit
"""


def parse(line: str):
    path, command, rest = parser.resolve(shlex.split(line))
    assert isinstance(command, parser.Command)
    return parser.build(path, command).parse_args(rest)


def test_all_commands_that_operators_know_are_there():
    assert set(COMMANDS) == {name.strip() for name in KNOWN.split(",")}


@pytest.mark.parametrize(("path", "example"), EXAMPLES)
def test_examples_are_of_their_command_and_parse(path, example):
    words = shlex.split(example)
    assert words[0] == "mcvirt"
    resolved, command, rest = parser.resolve(words[1:])
    assert resolved == path
    parser.build(resolved, command).parse_args(rest)


@pytest.mark.parametrize("path", COMMANDS)
def test_every_argument_has_help_and_every_help_can_be_printed(path):
    command = COMMANDS[path]
    made = parser.build(path, command)
    assert command.help
    assert command.examples
    assert all(action.help for action in made._actions)
    text = made.format_help()
    for example in command.examples:
        assert f"  {example}\n" in text


def test_the_catalog_says_what_the_commands_say():
    for name, (_, _, text) in catalog.COMMANDS.items():
        found = parser.load(name)
        if isinstance(found, parser.Command):
            assert found.help == text
        else:
            assert text


def test_value_flags_are_those_global_flags_that_take_a_value():
    made = parser.Parser(prog="x")
    parser.add_globals(made)
    taking = {flag for a in made._actions if a.nargs != 0 for flag in a.option_strings}
    assert taking == catalog.VALUE_FLAGS
    assert {action.dest for action in made._actions} == parser.GLOBAL_DESTS


@pytest.mark.parametrize(
    "line",
    [
        "--json --host n1 network list",
        "network --json --host n1 list",
        "network list --json --host n1",
        "--host=n1 network --json list",
    ],
)
def test_global_flags_stand_before_and_after(line):
    args = parse(line)
    assert (args.json, args.host) == (True, "n1")


def test_the_last_of_two_values_wins():
    assert parse("--host n1 list --host n2").host == "n2"


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("create web1 --memory 512 --cpu-count 1", "memory", 512 * 1024**2),
        ("create web1 --memory 2GiB --cpu-count 1 --disk-size 8192", "disk_size", [8192 * 1024**2]),
        ("create web1 --memory 512 --cpu-count 1 --driver ide", "driver", "IDE"),
        ("create web1 --memory 512 --cpu-count 1 --hdd-driver IDE", "driver", "IDE"),
        ("create --memory 512 --cpu-count 1 --nodes n1 web1", "nodes", ["n1"]),
        ("create web1 --memory 512 --cpu-count 1 --network a --network a", "network", ["a", "a"]),
        ("list --ram", "memory", True),
        ("list --hdd", "disk", True),
        ("update web1 --attach-iso x.iso", "iso", "x.iso"),
        ("update web1 --iso", "iso", ""),
        ("update web1 --memory 1024", "iso", None),
        ("update web1 --autostart-on-poll", "autostart", "ON_POLL"),
        ("network create lan --physical-interface br0", "interface", "br0"),
        ("storage add ssd --type lvm --volume-group-name vg0", "type", "Lvm"),
        ("user add-permission alice modify_vm", "permissions", ["MODIFY_VM"]),
        ("storage create s --type Lvm --node n1 vg1 --node n2", "nodes", [["n1", "vg1"], ["n2"]]),
        ("list --timeout 5m", "timeout", 300.0),
        ("shutdown --wait web1", "vm_names", ["web1"]),
        ("start", "vm_names", []),
    ],
)
def test_words_mean_what_they_meant(line, name, value):
    assert getattr(parse(line), name) == value


@pytest.mark.parametrize(
    "line",
    [
        "lst",
        "list web1",
        "create web1",
        "create web1 --memory 512",
        "create web1 --memory 512 --cpu-count one",
        "network frob",
        "lock web1",
        "lock web1 --lock --unlock",
        "permission",
        "permission --list --global",
        "update web1 --autostart-on-boot --autostart-disable",
        "list --js",
        "iso add x --from-path --from-url",
    ],
)
def test_what_makes_no_sense_is_bad_usage(line):
    with pytest.raises(UsageError):
        parse(line)


def test_next_word_skips_flags_and_their_values():
    assert next_word(["--host", "list", "--json", "info"]) == 3
    assert next_word(["--host=list", "info"]) == 1
    assert next_word(["-U", "list"]) == -1
    assert next_word([]) == -1


def test_commands_ask_the_client_library_and_nobody_else():
    folder = Path(mcvirt_client.cli.__file__).parent
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] not in {"mcvirtd", "Pyro4", "subprocess", "libvirt"}, path


def test_a_noun_that_does_something_by_itself_is_not_taken_for_its_verb():
    for line, path in (
        ("node drain node1", "node drain"),
        ("--json node drain node1 --return", "node drain"),
        ("node --json drain node1", "node drain"),
        ("node --host other drain node1", "node drain"),
        ("node --get-autostart-interval", "node"),
        ("node --set-vm-vg drain", "node"),
        ("node --set-ip-address 192.0.2.1", "node"),
        ("node --help", "node"),
        ("node", "node"),
    ):
        assert parser.resolve(line.split())[0] == path, line
    assert parse("node drain node1 --return").back and parse("node --set-vm-vg drain").set_vm_vg == "drain"
