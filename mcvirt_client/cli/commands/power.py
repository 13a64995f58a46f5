"""start, stop, shutdown and reset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcvirt_client.cli.parser import Command, Parser
from mcvirt_client.cli.report import after_changes
from mcvirt_client.tasks import Detached

if TYPE_CHECKING:
    from collections.abc import Callable

    from mcvirt_client.cli.context import Context

DEFAULT_SHUTDOWN_WAIT = 300


def _names(parser: Parser) -> None:
    parser.argument("vm_names", nargs="*", metavar="NAME", live="vm", help="virtual machines, done in this order")


def _start_arguments(parser: Parser) -> None:
    _names(parser)
    parser.argument(
        "--iso", metavar="ISO", live="iso", help="boot from this ISO image; without it any image is ejected"
    )


def _shutdown_arguments(parser: Parser) -> None:
    _names(parser)
    parser.add_argument(
        "--wait",
        action="store_true",
        help=f"wait until each is off, for as long as --timeout says ({DEFAULT_SHUTDOWN_WAIT} s if it does not)",
    )


def _each(context: Context, operation: str, action: str, success: str, failure: str, **arguments: Any) -> None:
    """Do it to each in order; the first failure ends it, and what was done before is said all the same."""
    call: Callable[..., None] = getattr(context.client.vms, operation)
    done: list[str] = []
    tasks: dict[str, str] = {}
    try:
        for name in context.args.vm_names:
            try:
                call(name, **arguments)
            except Detached as detached:
                if not detached.asked:
                    raise
                tasks[name] = detached.ref.task
                if not context.out.json:
                    context.out.stdout.write(f"{detached.ref.task}\n")
                continue
            except Exception as error:
                context.out.warn(f"Error while {failure} VM {name}")
                if done or tasks:
                    raise after_changes(error) from None
                raise
            done.append(name)
            if not context.out.json:
                context.out.say(f"{success} VM {name}")
    finally:
        if context.out.json:
            context.out.value({"operation": action, "done": done, "tasks": tasks}, str)


def _start(context: Context) -> None:
    _each(context, "start", "start", "Successfully started", "starting", iso=context.args.iso)


def _stop(context: Context) -> None:
    _each(context, "stop", "stop", "Successfully stopped", "stopping")


def _reset(context: Context) -> None:
    _each(context, "reset", "reset", "Successfully reset", "resetting")


def _shutdown(context: Context) -> None:
    args = context.args
    wait = None
    if args.wait:
        wait = int(args.timeout or DEFAULT_SHUTDOWN_WAIT)
        # The task itself ends at that time, and says why; it is given the time to say so.
        args.timeout = wait + 30.0
    success = "Successfully shutting down" if wait is None else "Successfully shut down"
    _each(context, "shutdown", "shutdown", success, "shutting down", wait=wait)


COMMANDS = {
    "start": Command(
        "Start virtual machines",
        _start,
        _start_arguments,
        examples=("mcvirt start web1", "mcvirt start web1 web2 db1", "mcvirt start web1 --iso debian-12.iso"),
    ),
    "stop": Command(
        "Turn virtual machines off at once",
        _stop,
        _names,
        description="This is like pulling the plug: what the guest has not yet written is lost. See also shutdown.",
        examples=("mcvirt stop web1", "mcvirt stop web1 web2"),
    ),
    "shutdown": Command(
        "Ask the guests of virtual machines to shut down",
        _shutdown,
        _shutdown_arguments,
        description="It presses the power button, and does not wait for the guest unless --wait is given.",
        examples=("mcvirt shutdown web1", "mcvirt shutdown --wait --timeout 120 web1", "mcvirt shutdown web1 --wait"),
    ),
    "reset": Command(
        "Press the reset button of virtual machines",
        _reset,
        _names,
        description="The virtual machine must be running and unlocked.",
        examples=("mcvirt reset web1",),
    ),
}
