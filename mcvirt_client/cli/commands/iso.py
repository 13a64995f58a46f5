"""iso."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt_client.cli.parser import Command, Group, Parser
from mcvirt_client.cli.report import UsageError

if TYPE_CHECKING:
    from mcvirt.types.storage import IsoInfo
    from mcvirt_client.cli.context import Context


def _node(parser: Parser) -> None:
    parser.argument("--node", metavar="NODE", live="node", help="the node; if not given, the one that is asked")


def _list_arguments(parser: Parser) -> None:
    _node(parser)
    parser.add_argument("--long", "-l", action="store_true", help="also sizes, checksums, and who uses them")


def _list(context: Context) -> None:
    images = context.client.isos.list(context.args.node)
    context.out.value(images, lambda: _text(context, images))


def _text(context: Context, images: tuple[IsoInfo, ...]) -> str:
    from mcvirt.units import format_size
    from mcvirt_client.cli.output import clean

    if not images:
        return "No ISOs found\n"
    if not context.args.long:
        return "".join(f"{clean(image.name)}\n" for image in images)
    return context.out.table(
        ("Name", "Size", "Node", "Used by", "SHA-256"),
        [(i.name, format_size(i.size), i.node, ", ".join(i.used_by), i.sha256) for i in images],
    )


def _add_arguments(parser: Parser) -> None:
    parser.add_argument("iso_name", metavar="PATH-OR-URL", help="the file on this machine, or the address")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--from-path", action="store_true", help="send the file from this machine")
    source.add_argument("--from-url", action="store_true", help="let the node download it (http or https)")
    parser.add_argument("--name", metavar="ISO", help="what to call it, if not as the file")
    parser.add_argument("--sha256", metavar="HEX", help="with --from-url: refuse an image with another checksum")
    _node(parser)


def _add(context: Context) -> None:
    args = context.args
    from_url = args.from_url or (not args.from_path and args.iso_name.startswith(("http://", "https://")))
    if from_url:
        image = context.client.isos.add_url(args.iso_name, args.name, args.sha256, args.node)
    else:
        if args.sha256:
            raise UsageError("--sha256 belongs to --from-url; what is sent from here is checked anyway.", "")
        from mcvirt_client.cli.progress import Bars
        from mcvirt_client.upload import upload_iso

        bars = None if args.quiet else Bars(context.out)
        image = upload_iso(
            context.client,
            args.iso_name,
            args.name,
            args.node,
            (lambda done, total: bars.amount("Sending", done, total)) if bars else None,
        )
    context.done(f"Successfully added ISO: {image.name}", image)


def _delete_arguments(parser: Parser) -> None:
    parser.argument("delete_path", metavar="ISO", live="iso", help="the image")
    _node(parser)


def _delete(context: Context) -> None:
    name = context.args.delete_path
    context.client.isos.delete(name, context.args.node)
    context.done(f"Successfully removed iso: {name}", {"deleted": name})


COMMANDS = {
    "iso": Group(
        "ISO images, which each node keeps for itself",
        {
            "list": Command(
                "List the images of a node",
                _list,
                _list_arguments,
                examples=("mcvirt iso list", "mcvirt iso list --long", "mcvirt iso list --node node2"),
            ),
            "add": Command(
                "Add an image from a file or an address",
                _add,
                _add_arguments,
                examples=(
                    "mcvirt iso add ./debian-12.iso --from-path",
                    "mcvirt iso add https://example.org/debian-12.iso --from-url",
                    "mcvirt iso add /tmp/netinst.iso --name debian-12.iso",
                ),
            ),
            "delete": Command(
                "Delete an image", _delete, _delete_arguments, examples=("mcvirt iso delete debian-12.iso",)
            ),
        },
    )
}
