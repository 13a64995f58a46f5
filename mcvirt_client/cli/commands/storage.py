"""storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt_client.cli.output import about
from mcvirt_client.cli.parser import Command, Group, Parser, capital
from mcvirt_client.cli.report import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mcvirt.types.storage import BackendInfo
    from mcvirt_client.cli.context import Context


def _list(context: Context) -> None:
    backends = context.client.storage.list()
    context.out.value(backends, lambda: _table(context, backends))
    for backend in backends:
        if backend.problem:
            context.out.say(f"Warning: storage backend {backend.name}: {backend.problem}")


def _table(context: Context, backends: Iterable[BackendInfo]) -> str:
    def nodes(backend: BackendInfo) -> str:
        return ", ".join(
            f"{node} ({place})" if place and place != backend.location else node
            for node, place in sorted(backend.nodes.items())
        )

    return context.out.table(
        ("Name", "Type", "Location", "Nodes", "Shared", "Free Space", "ID"),
        [
            (
                backend.name,
                backend.type.value,
                backend.location or "",
                nodes(backend),
                "Yes" if backend.shared else "No",
                "Unknown" if backend.free is None else about(backend.free),
                backend.id,
            )
            for backend in backends
        ],
    )


def _name(parser: Parser) -> None:
    parser.argument("name", metavar="NAME", live="backend", help="the storage backend")


def _create_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="up to 64 letters, digits and dashes")
    parser.add_argument("--type", type=capital, required=True, choices=("Lvm", "File"), help="Lvm or File")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--volume-group-name", "--vg", dest="volume_group", metavar="VG", help="Lvm: the volume group")
    where.add_argument("--path", metavar="DIRECTORY", help="File: the directory")
    parser.add_argument("--shared", action="store_true", help="all nodes see the same data there")
    _nodes(parser, required=False)
    parser.add_argument("--thin-pool", metavar="POOL", help="Lvm: make thin volumes in this pool")
    parser.add_argument("--format", choices=("raw", "qcow2"), default="raw", help="File: how disks are written (raw)")


def _nodes(parser: Parser, *, required: bool) -> None:
    parser.argument(
        "--node",
        dest="nodes",
        nargs="+",
        action="append",
        default=None if required else [],
        required=required,
        metavar=("NODE", "LOCATION"),
        live="node",
        help="a node, and its own location if it has one; again for more nodes; none means all",
    )


def _locations(given: list[list[str]]) -> dict[str, str]:
    nodes: dict[str, str] = {}
    for words in given:
        if len(words) > 2:
            raise UsageError("--node takes a node and at most one location.", "Write --node again for each node.")
        if words[0] in nodes:
            raise UsageError(f"Node '{words[0]}' is named twice.", "")
        nodes[words[0]] = words[1] if len(words) == 2 else ""
    return nodes


def _create(context: Context) -> None:
    from mcvirt.types.storage import BackendSpec, BackendType, VolumeFormat

    args = context.args
    if args.type == "Lvm" and args.path is not None:
        raise UsageError("--path belongs to --type File.", "Lvm takes --volume-group-name.")
    if args.type == "File" and args.volume_group is not None:
        raise UsageError("--volume-group-name belongs to --type Lvm.", "File takes --path.")
    backend = context.client.storage.create(
        BackendSpec(
            name=args.name,
            type=BackendType(args.type),
            location=args.path if args.type == "File" else args.volume_group,
            shared=args.shared,
            nodes=_locations(args.nodes),
            thin_pool=args.thin_pool,
            format=VolumeFormat(args.format),
        )
    )
    context.done("", backend)


def _delete(context: Context) -> None:
    context.client.storage.delete(context.args.name)
    context.done("", {"deleted": context.args.name})


def _add_node_arguments(parser: Parser) -> None:
    _name(parser)
    _nodes(parser, required=True)


def _add_node(context: Context) -> None:
    backend = context.client.storage.add_nodes(context.args.name, _locations(context.args.nodes))
    context.done("", backend)


def _remove_node_arguments(parser: Parser) -> None:
    _name(parser)
    parser.argument(
        "--node",
        dest="nodes",
        action="append",
        required=True,
        metavar="NODE",
        live="node",
        help="a node; again for more",
    )


def _remove_node(context: Context) -> None:
    backend = context.client.storage.remove_nodes(context.args.name, tuple(context.args.nodes))
    context.done("", backend)


def _create_command(help: str, verb: str) -> Command:
    return Command(
        help,
        _create,
        _create_arguments,
        alias_of="" if verb == "create" else "create",
        examples=(
            f"mcvirt storage {verb} ssd --type Lvm --volume-group-name vg0",
            f"mcvirt storage {verb} files --type File --path /srv/vms --format qcow2",
            f"mcvirt storage {verb} fast --type Lvm --node node1 vg-ssd --node node2 vg-nvme",
        ),
    )


COMMANDS = {
    "storage": Group(
        "Storage backends: where the disks of virtual machines are kept",
        {
            "list": Command("List all storage backends", _list, examples=("mcvirt storage list",)),
            "create": _create_command("Create a storage backend", "create"),
            "add": _create_command("The same as create", "add"),
            "delete": Command(
                "Delete a storage backend that no hard drive uses; its location stays",
                _delete,
                _name,
                examples=("mcvirt storage delete ssd",),
            ),
            "add-node": Command(
                "Make a storage backend available on more nodes",
                _add_node,
                _add_node_arguments,
                examples=(
                    "mcvirt storage add-node ssd --node node3",
                    "mcvirt storage add-node ssd --node node3 vg-ssd",
                ),
            ),
            "remove-node": Command(
                "Take nodes away from a storage backend",
                _remove_node,
                _remove_node_arguments,
                examples=("mcvirt storage remove-node ssd --node node3",),
            ),
        },
    )
}
