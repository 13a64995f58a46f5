"""network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt_client.cli.parser import Command, Group, Parser

if TYPE_CHECKING:
    from mcvirt_client.cli.context import Context


def _list(context: Context) -> None:
    networks = context.client.networks.list()
    context.out.value(
        networks,
        lambda: context.out.table(
            ("Network", "Physical Interface", "Used by"),
            [(n.name, n.interface, ", ".join(n.used_by)) for n in networks],
        ),
    )
    for network in networks:
        if network.problem:
            context.out.say(f"Warning: network {network.name}: {network.problem}")


def _create_arguments(parser: Parser) -> None:
    parser.add_argument("network", metavar="NAME", help="up to 64 letters, digits and dashes")
    parser.add_argument(
        "--interface",
        "--physical-interface",
        dest="interface",
        required=True,
        metavar="BRIDGE",
        help="the bridge, which must exist on every node",
    )


def _create(context: Context) -> None:
    context.done("", context.client.networks.create(context.args.network, context.args.interface))


def _delete_arguments(parser: Parser) -> None:
    parser.argument("network", metavar="NAME", live="network", help="the network")


def _delete(context: Context) -> None:
    context.client.networks.delete(context.args.network)
    context.done("", {"deleted": context.args.network})


COMMANDS = {
    "network": Group(
        "Networks: names for bridges of the nodes",
        {
            "list": Command("List all networks", _list, examples=("mcvirt network list",)),
            "create": Command(
                "Create a network over a bridge",
                _create,
                _create_arguments,
                examples=("mcvirt network create lan --interface br0",),
            ),
            "delete": Command(
                "Delete a network that no virtual machine uses; the bridge stays",
                _delete,
                _delete_arguments,
                examples=("mcvirt network delete lan",),
            ),
        },
    )
}
