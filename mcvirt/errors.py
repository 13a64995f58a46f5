"""Every error that crosses the wire.

    McvirtError
    |-- Refused                 checked first, nothing was changed            exit status 3
    |   |-- BadArgument         a value that can't be taken
    |   |-- NotFound            a name that nothing has
    |   |-- AlreadyExists       a name that something has
    |   |-- Conflict            the object is not in a state that allows this
    |   `-- NotPermitted        who asked may not (exit status 4, like NotAuthenticated)
    |-- Failed                  began; says what was undone and what remains  exit status 1
    |-- Unreachable             a node, a daemon or libvirt did not answer    exit status 5
    |-- RemoteError             an error of a newer peer, its text kept
    `-- InternalError           a defect of ours; details only in the log, under its reference

The class docstring is the message: its fields are filled in by name. Callers catch classes; nobody parses text.
"""

from __future__ import annotations

from typing import Any, ClassVar

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_NOT_PERMITTED = 4
EXIT_UNREACHABLE = 5
EXIT_NODE_AWAY = 6

_LONGEST_NAME = 200

_REGISTRY: dict[str, type[McvirtError]] = {}


class McvirtError(Exception):
    """{text}"""

    exit_code: ClassVar[int] = EXIT_FAILED

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__doc__:
            raise TypeError(f"{cls.__name__} has no docstring, and so no message")
        if cls.__name__ in _REGISTRY:
            raise TypeError(f"two errors are called {cls.__name__}")
        _REGISTRY[cls.__name__] = cls

    def __init__(self, **fields: object) -> None:
        super().__init__(fields)
        self.fields = fields

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __str__(self) -> str:
        template = " ".join((type(self).__doc__ or "").split())
        try:
            return template.format(**self.fields)
        except (KeyError, IndexError):  # an older or newer peer sent other fields
            return template + " " + repr(self.fields)

    def to_wire(self) -> dict[str, object]:
        """The class name, the fields, and the sentence for those who do not know the class."""
        return {"name": type(self).__name__, "fields": self.fields, "text": str(self), "exit_code": self.exit_code}


def from_wire(data: dict[str, Any]) -> McvirtError:
    """The error that *data* (made by ``to_wire``, perhaps by a newer peer) stands for."""
    cls = _REGISTRY.get(str(data.get("name")))
    fields = data.get("fields")
    if cls is not None and isinstance(fields, dict):
        return cls(**{str(key): value for key, value in fields.items()})
    return RemoteError(name=str(data.get("name")), text=str(data.get("text")))


class Refused(McvirtError):
    """{text}"""

    exit_code = EXIT_REFUSED


class Failed(McvirtError):
    """{text}"""


class Unreachable(McvirtError):
    """{text}"""

    exit_code = EXIT_UNREACHABLE


class RemoteError(McvirtError):
    """{text} ({name})"""


class InternalError(McvirtError):
    """Something went wrong inside mcvirtd, and nothing more is known about it here.
    The log of node '{node}' has the details under reference {reference}."""


# --- families -----------------------------------------------------------------------------------------------------


class BadArgument(Refused):
    """{what}: {why}"""


class NotFound(Refused):
    """There is no {kind} called '{name}'.{hint}"""

    def __init__(self, **fields: object) -> None:
        name = str(fields.get("name", ""))
        if len(name) > _LONGEST_NAME:  # nothing is called so; a megabyte that was asked for is not sent back
            fields["name"] = name[:_LONGEST_NAME] + "..."
        super().__init__(**{"hint": "", **fields})


class AlreadyExists(Refused):
    """There is already {a} {kind} called '{name}'. Choose another name, or delete that one first."""

    def __init__(self, **fields: object) -> None:
        vowel = str(fields.get("kind", "")).startswith(tuple("AEIOaeio"))
        super().__init__(**{"a": "an" if vowel else "a", **fields})


class Conflict(Refused):
    """{text}"""


class SeveralReasons(Refused):
    """{text}"""

    @classmethod
    def of(cls, errors: list[Refused]) -> Refused:
        """One error that says all *errors*; the error itself where there is only one."""
        if len(errors) == 1:
            return errors[0]
        return cls(text="; ".join(str(error).rstrip(".") for error in errors) + ".", count=len(errors))


# --- who is calling -----------------------------------------------------------------------------------------------


class NotAuthenticated(Refused):
    """{text}"""

    exit_code = EXIT_NOT_PERMITTED


class LoginFailed(NotAuthenticated):
    """The user name or the password is wrong."""


class LoginSlowedDown(NotAuthenticated):
    """There were too many failed logins for this user or from this address. Try again in {seconds} s."""


class LoginsBusy(Unreachable):
    """So many passwords are being checked at this moment that this one had to be put off. Try again in a moment."""


class SessionRefused(NotAuthenticated):
    """The session token is not valid: it was revoked, has expired, or was never issued. Log in again."""


class NotPermitted(Refused):
    """User '{user}' does not have the permission {permission}{scope}."""

    exit_code = EXIT_NOT_PERMITTED


# --- virtual machines ---------------------------------------------------------------------------------------------


class VmNotFound(NotFound):
    """There is no virtual machine called '{name}'. `mcvirt list` shows all of them.{hint}"""


class VmRunning(Conflict):
    """Virtual machine '{name}' is running. Stop it first, with `mcvirt shutdown {name}` or `mcvirt stop {name}`."""


class VmAlreadyRunning(Conflict):
    """Virtual machine '{name}' is running already."""


class VmPaused(Conflict):
    """Virtual machine '{name}' is paused: somebody did that with libvirt, or its storage was full.
    `virsh resume {name}` on its node lets it go on; `mcvirt stop {name}` turns it off."""


class UnsuitableNode(Conflict):
    """Virtual machine '{name}' can't run on node '{node}': the nodes that may have it are {nodes}."""


class OwnerAlive(Conflict):
    """Virtual machine '{name}' is registered on node '{node}', and that node is on: {witness} Turn it off first, or
    let it give the machine away with `mcvirt unregister {name}`."""


class OwnerUnconfirmed(Refused):
    """Virtual machine '{name}' is registered on node '{node}'. Make sure that this node is off, and say so with
    `mcvirt failover {name} --yes-node-is-off {node}`."""


class TakenOverOnly(Failed):
    """Virtual machine '{name}' is registered on node '{node}' now, and could not be started there: {reason}"""


class VmStopped(Conflict):
    """Virtual machine '{name}' is not running. Start it first, with `mcvirt start {name}`."""


class VmLocked(Conflict):
    """Virtual machine '{name}' is locked. `mcvirt lock {name} --unlock` unlocks it."""


class VmProtected(Conflict):
    """Virtual machine '{name}' is protected against deletion.
    `mcvirt update {name} --disable-delete-protection CODE` takes the protection off; CODE is the name reversed."""


class VmNotRegistered(Conflict):
    """Virtual machine '{name}' is not registered on a node. `mcvirt register {name}` registers it here."""


class VmRegistered(Conflict):
    """Virtual machine '{name}' is registered on node '{node}'."""


class DiskInUse(Conflict):
    """Hard drive {disk} is attached to virtual machine '{vm}'. Detach it first."""


class TooManyDisks(Conflict):
    """Virtual machine '{name}' has {count} hard drives, and {limit} is the most that one can have."""


class NoSpace(Refused):
    """Storage backend '{backend}' has {free} free on node '{node}', and {needed} is needed."""


class VolumeNotFound(NotFound):
    """There is no volume called '{name}' in {location}."""


class VolumeExists(AlreadyExists):
    """There is already a volume called '{name}' in {location}."""


class VolumeInUse(Conflict):
    """Volume '{name}' in {location} is in use by a program on this node."""


class VolumeUnusable(Refused):
    """Volume '{name}' in {location} can't be used: {reason}"""


class BackendUnavailable(Conflict):
    """Storage backend '{backend}' is not available on node '{node}': {reason}"""


class InUse(Conflict):
    """{kind} '{name}' is in use by {users}. {hint}"""


class ChecksumWrong(Failed):
    """What arrived of '{name}' is not what it should be: its SHA-256 is {found}, and {expected} was expected.
    It was dropped."""


class DownloadFailed(Failed):
    """{url} could not be downloaded: {reason} Nothing of it was kept."""


class VmIncomplete(Failed):
    """Virtual machine '{name}' was created, but not everything it was to have: {reason} What is missing can be
    added with `mcvirt update {name}`, or the machine deleted with `mcvirt delete {name}`."""


# --- replicated hard drives ---------------------------------------------------------------------------------------


class DrbdUnavailable(Conflict):
    """DRBD can't be used on this node: {reason}"""


class DrbdNotReady(Refused):
    """DRBD can't be enabled: {reasons} Nothing was changed."""


class DrbdDeviceOpen(Conflict):
    """A program on this node has the device of DRBD resource {name} open."""


class VerificationFailed(Failed):
    """{text}"""


class MigrationFailed(Failed):
    """Virtual machine '{name}' was not migrated: {reason} It is on node '{node}' as before, and nothing of it is left
    on the other node."""


class MigratedOnly(Failed):
    """Virtual machine '{name}' was migrated to node '{node}', but not started there: {reason}"""


# --- the ground ---------------------------------------------------------------------------------------------------


class Busy(Conflict):
    """{object} is in use by task {task} ({operation}). Wait for it, or cancel it with `mcvirt task cancel {task}`."""


class TaskCancelled(Failed):
    """The task was cancelled{by}; what it had begun was undone."""


class ResyncGoesOn(TaskCancelled):
    """The waiting was cancelled{by}; the copying goes on in the kernel, since a half copied disk is no good."""


class DeadlinePassed(Failed):
    """{what} did not happen within {seconds} s: {why}"""


class CommandFailed(Failed):
    """{program} failed with status {status}: {output}"""


class ProgramMissing(CommandFailed):
    """The program {program} is not installed on this node.{hint}"""


class NoSpaceLeft(Failed):
    """There is not enough space left to {action} {path}. What had been begun was undone."""


class FileFailed(Failed):
    """It was not possible to {action} {path}: {reason}"""


class LibvirtFailed(Failed):
    """libvirt could not {action}: {reason}"""


class DomainMissing(Conflict):
    """libvirt on node '{node}' has no domain with UUID {uuid}: it was undefined there. `mcvirt register` defines a
    virtual machine again."""


class LibvirtUnreachable(Unreachable):
    """libvirt on node '{node}' can't be reached at {uri}: {reason} Is libvirtd running?"""


class NodeUnreachable(Unreachable):
    """Node '{node}' can't be reached: {reason}"""


class AnswerLost(NodeUnreachable):
    """Node '{node}' was asked and did not answer: {reason} So it is not known whether it is done. Look before you try
    again."""


class DaemonBusy(Unreachable):
    """mcvirtd on node '{node}' has as many connections as it takes. Try again in a moment."""


class StateRefused(Failed):
    """The state file {path} can't be used: {reason} It was left as it is. {hint}"""


class StateNotWritable(Failed):
    """The change could not be stored in {path}: {reason} Nothing was changed."""


class SettingsRefused(Refused):
    """The settings in {path} can't be used: {text}"""


class UndoIncomplete(Failed):
    """{text} Not everything could be undone: {remains}"""


class MigrationUnfinished(UndoIncomplete):
    """Virtual machine '{name}' is on node '{node}' now. {what} follows by itself as soon as it can. Just now it can't:
    {remains}"""


# --- members of the cluster ---------------------------------------------------------------------------------------


class NotAMember(NotAuthenticated):
    """Node '{node}' does not know node '{name}' as a member of its cluster."""


class NodeRemoved(Conflict):
    """This node, '{node}', was removed from its cluster and changes nothing any more. `mcvirt cluster reset` makes it a
    cluster of its own, which can be joined to another; until then it can only be looked at."""


class ConnectStringRefused(Refused):
    """The connect string can't be used: {reason}"""


class NotSuitable(Refused):
    """Node '{node}' can't join this cluster: {reasons}"""


class JoinFailed(Failed):
    """Node '{node}' did not join: {reason} {state}"""


# --- one order of changes -----------------------------------------------------------------------------------------


class NotLeader(Conflict):
    """This node does not order the changes of the cluster; node '{leader}' does."""


class StaleChange(Conflict):
    """The configuration was changed meanwhile (it is at revision {revision} now). Try again."""


class NoMajority(Unreachable):
    """Only {heard} of {members} nodes can be reached, so nothing of the configuration can be changed here.
    `mcvirt info` shows which nodes are missing; if they are off, `--ignore-failed-nodes` goes on without them."""


class ChangeUnknown(Failed):
    """It is not known whether the change (revision {revision}) will stand: {reason} Look again when all nodes are
    back."""


class LeaderUnreachable(Unreachable):
    """Node '{leader}', which orders the changes of the cluster, does not answer. `mcvirt cluster promote` makes another
    node do that, if '{leader}' is off."""


class LeaderAlive(Conflict):
    """Node '{leader}' leads the cluster and is alive: node '{witness}' reaches it."""


class PromotionUnconfirmed(Refused):
    """Only {heard} of {members} nodes can be asked, so it can't be known here whether node '{leader}' is off. Make sure
    that it is, and say so with `mcvirt cluster promote --yes-the-leader-is-off {leader}`."""
