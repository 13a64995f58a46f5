"""node: its settings, and `node drain`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt_client.cli.commands.drain import DRAIN
from mcvirt_client.cli.parser import Command, Group, Parser

if TYPE_CHECKING:
    from mcvirt_client.cli.context import Context


def _interval(text: str) -> int:
    from mcvirt.units import parse_duration

    return parse_duration(text, what="--set-autostart-interval")


def _arguments(parser: Parser) -> None:
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument(
        "--set-autostart-interval",
        type=_interval,
        metavar="SECONDS",
        help="how often stopped virtual machines with --autostart-on-poll are started; 0 = never",
    )
    one.add_argument(
        "--set-ip-address",
        "--set-cluster-ip",
        dest="set_ip_address",
        metavar="ADDRESS",
        help="the address at which other nodes reach this node",
    )
    one.add_argument("--get-autostart-interval", action="store_true", help="print how often that is")
    one.add_argument(
        "--set-vm-vg",
        metavar="VG",
        help="the same as `mcvirt storage create VG --type Lvm --volume-group-name VG`",
    )


def _node(context: Context) -> None:
    address = context.args.set_ip_address
    if address is not None:
        context.client.nodes.set_address(address)
        context.done(f"Successfully set cluster IP address to {address}", {"address": address})
        return
    seconds = context.args.set_autostart_interval
    if seconds is not None:
        context.client.nodes.set_autostart_interval(seconds)
        context.done(f"Successfully set the autostart interval to {seconds}", {"autostart_interval": seconds})
        return
    if context.args.set_vm_vg is not None:
        _create_backend(context, context.args.set_vm_vg)
        return
    settings = context.client.nodes.settings()
    context.out.value(settings, lambda: f"{settings.autostart_interval}\n")


def _create_backend(context: Context, group: str) -> None:
    from mcvirt.types.storage import BackendSpec, BackendType

    backend = context.client.storage.create(BackendSpec(name=group, type=BackendType.LVM, location=group))
    context.done(f"Successfully created storage backend {backend.name}", backend)


COMMANDS = {
    "node": Group(
        "Show and change the settings of the nodes, and empty them",
        {"drain": DRAIN},
        Command(
            "Show and change the settings of the nodes",
            _node,
            _arguments,
            description="`mcvirt info` shows the nodes themselves, and `mcvirt node drain NODE` moves all virtual "
            "machines off one; `mcvirt node drain --help` tells more.",
            examples=(
                "mcvirt node --set-ip-address 192.0.2.1",
                "mcvirt node --get-autostart-interval",
                "mcvirt node --set-autostart-interval 60",
                "mcvirt node --set-vm-vg vg0",
            ),
        ),
    )
}
