"""list and info."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt_client.cli.output import DIM, GREEN, RED, YELLOW, about
from mcvirt_client.cli.parser import Command, Parser
from mcvirt_client.cli.report import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mcvirt.types.cluster import NodeInfo
    from mcvirt.types.vm import VmInfo, VmRow
    from mcvirt_client.cli.context import Context
    from mcvirt_client.cli.output import Output, Paint

MISSING = "Unavailable (not registered)"
UNREGISTERED = "Unregistered"
STATE_COLOURS = {"RUNNING": GREEN, "STOPPED": DIM, "PAUSED": YELLOW, "UNKNOWN": YELLOW, MISSING: RED}


def _list_arguments(parser: Parser) -> None:
    parser.add_argument("--cpu", action="store_true", help="also show the number of CPUs")
    parser.add_argument("--memory", "--ram", dest="memory", action="store_true", help="also show the memory")
    parser.add_argument(
        "--disk-size", "--hdd", dest="disk", action="store_true", help="also show the size of all disks"
    )


def _list(context: Context) -> None:
    rows = context.client.vms.list()
    context.out.value(rows, lambda: _list_table(context, rows))
    for row in rows:
        for trouble in row.trouble:
            context.out.say(f"Warning: {row.name}: {trouble}")


def _list_table(context: Context, rows: Iterable[VmRow]) -> str:
    args = context.args
    if args.memory or args.disk:
        from mcvirt.units import format_size
    headers = ["VM Name", "State", "Node"]
    headers += ["RAM Allocation"] * args.memory + ["CPU"] * args.cpu + ["Total disk size"] * args.disk
    lines = []
    for row in rows:
        line = [row.name, MISSING if row.missing else row.state.value, _node(row)]
        if args.memory:
            line.append(format_size(row.memory))
        if args.cpu:
            line.append(str(row.cpu_count))
        if args.disk:
            line.append(format_size(row.disk_size))
        lines.append(line)
    return context.out.table(headers, lines, {"State": STATE_COLOURS, "Node": {UNREGISTERED: YELLOW}})


def _node(row: VmRow) -> str:
    if row.age is not None:
        return f"{row.node} (unreachable, as of {row.age} s ago)"
    return row.node or UNREGISTERED


def _info_arguments(parser: Parser) -> None:
    parser.argument("vm_name", nargs="?", metavar="NAME", live="vm", help="the virtual machine; none: the nodes")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--vnc-port", action="store_true", help="print only the port of the VNC display, on its node")
    one.add_argument("--vnc-password", action="store_true", help="print only the password of the VNC display")
    one.add_argument("--node", action="store_true", help="print only the name of the node it is registered on")


def _info(context: Context) -> None:
    args, out = context.args, context.out
    name = args.vm_name
    if name is None:
        if args.vnc_port or args.vnc_password or args.node:
            raise UsageError("Name the virtual machine.", "`mcvirt info --help` explains.")
        nodes = context.client.nodes.list()
        out.value(nodes, lambda: _nodes(out, nodes))
        for node in nodes:
            for warning in node.warnings:
                out.say(f"Warning: node {node.name}: {warning}")
            if node.status == "Unreachable":
                known = "nothing else is known of it" if node.age is None else f"the rest is from {node.age} s ago"
                out.say(f"Warning: node {node.name} does not answer; {known}.")
    elif args.vnc_port or args.vnc_password:
        vnc = context.client.vms.vnc(name)
        out.value(vnc, lambda: f"{vnc.port if args.vnc_port else vnc.password}\n")
    else:
        info = context.client.vms.info(name)
        if args.node:
            out.value({"name": info.name, "node": info.node}, lambda: f"{info.node or UNREGISTERED}\n")
            return
        out.value(info, lambda: _vm(out, info))
        for warning in info.warnings:
            out.say(f"Warning: {warning}")


def _nodes(out: Output, nodes: tuple[NodeInfo, ...]) -> str:
    lines = [
        (
            node.name,
            node.address or "",
            node.status + (", leader" if node.leader and len(nodes) > 1 else ""),
            node.version,
            str(node.revision),
            "Unknown" if node.lag is None else str(node.lag),
            f"{node.cpu_count} x {_percent(node.cpu_percent)}",
            f"{about(node.memory_used)} of {about(node.memory)}",
            f"{node.vms_running} of {node.vms}",
            f"{node.accelerator} ({node.accelerator_reason})" if node.accelerator_reason else node.accelerator,
        )
        for node in nodes
    ]
    headers = ("Node", "IP Address", "Status", "Version", "Revision", "Lag", "CPU Usage", "Memory Usage", "VMs Running")
    colours = {status: GREEN for state in ("Local", "Connected") for status in (state, f"{state}, leader")}
    colours.update({status: RED for state in ("Unreachable", "Removed") for status in (state, f"{state}, leader")})
    return out.table((*headers, "Accelerator"), lines, {"Status": {**colours, "Joining": YELLOW, "Away": YELLOW}})


def _percent(value: float | None) -> str:
    return "Unknown" if value is None else f"{value:.1f}%"


def _vm(out: Output, info: VmInfo) -> str:
    from mcvirt.units import format_size

    # Registered, and libvirt has not lost it: then an unknown state says nothing about the guest.
    stopped = info.state.value == "STOPPED" or info.node is None or info.missing
    unused = "Not running" if stopped else "Unknown"
    usage = info.usage
    rows = [
        ("Name", info.name),
        ("CPU Cores", str(info.cpu_count)),
        ("Guest CPU Usage", _percent(usage.cpu_percent) if usage else unused),
        ("Memory Allocation", format_size(info.memory)),
        ("Guest Memory Usage", about(usage.memory) if usage else unused),
        ("State", MISSING if info.missing else info.state.value),
        ("Auto-start", info.autostart.value),
        ("Node", info.node or UNREGISTERED),
        ("Available Nodes", ", ".join(info.nodes)),
        ("Lock State", info.lock.value),
        ("Delete protection", "Enabled" if info.delete_protection else "Disabled"),
        ("UUID", info.uuid),
        ("ID", info.id),
        ("Graphics Driver", info.graphics_driver.value),
        ("Machine Type", info.machine.value),
        ("Accelerator", info.accelerator),
        ("Memballoon deflation state", "Enabled" if info.autodeflate else "Disabled"),
    ]
    if info.flags:
        rows.append(("Modification flags", ", ".join(flag.value for flag in info.flags)))
    if info.iso:
        rows.append(("ISO location", info.iso))
    if info.restart_needed:
        rows.append(("Restart needed", "Yes, for changes that are not yet in effect"))
    colours: Paint = {"State": STATE_COLOURS, "Lock State": {"LOCKED": YELLOW}, "Node": {UNREGISTERED: YELLOW}}
    parts = [out.pairs(rows, colours)]
    disks = [
        (str(d.slot), format_size(d.size), d.storage_type.value, d.backend, d.driver.value, d.id) for d in info.disks
    ]
    headers = ("-- Disk ID --", "-- Disk Size --", "Type", "Storage Backend", "Driver", "Hard Drive")
    parts.append(out.table(headers, disks) if disks else "No hard disks\n")
    if any(disk.replica is not None for disk in info.disks):
        from mcvirt_client.cli.commands.drbd import sides

        parts.append(sides(out, [disk.replica for disk in info.disks if disk.replica is not None]))
    adapters = [(adapter.mac, adapter.network) for adapter in info.adapters]
    parts.append(out.table(("-- MAC Address --", "-- Network --"), adapters) if adapters else "No network adapters\n")
    groups = [(group.group, ", ".join(group.users)) for group in info.groups if group.users]
    if groups:
        parts.append(out.table(("-- Group --", "-- Users --"), groups))
    rights = [(user, ", ".join(permissions)) for user, permissions in info.permissions.items() if permissions]
    if rights:
        parts.append(out.table(("-- User --", "-- Permissions --"), rights))
    return "\n".join(parts)


COMMANDS = {
    "list": Command(
        "List all virtual machines",
        _list,
        _list_arguments,
        examples=("mcvirt list", "mcvirt list --cpu --memory --disk-size", "mcvirt list --json"),
    ),
    "info": Command(
        "Show a virtual machine, or the nodes of the cluster",
        _info,
        _info_arguments,
        examples=("mcvirt info", "mcvirt info web1", "mcvirt info web1 --vnc-port", "mcvirt info web1 --json"),
    ),
}
