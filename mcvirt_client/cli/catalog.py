"""Every command by name: where its code is and, in a line, what it does. Costs nothing to import."""

from __future__ import annotations

MACHINES = "Virtual machines"
STORAGE = "Storage and networks"
ACCOUNTS = "Users and rights"
NODES = "Nodes and tasks"
SESSIONS = "Sessions"

# name -> (module of mcvirt_client.cli.commands, area, one line)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "list": ("query", MACHINES, "List all virtual machines"),
    "info": ("query", MACHINES, "Show a virtual machine, or the nodes of the cluster"),
    "create": ("machine", MACHINES, "Create a virtual machine"),
    "update": ("update", MACHINES, "Change a virtual machine"),
    "delete": ("machine", MACHINES, "Delete a virtual machine"),
    "start": ("power", MACHINES, "Start virtual machines"),
    "stop": ("power", MACHINES, "Turn virtual machines off at once"),
    "shutdown": ("power", MACHINES, "Ask the guests of virtual machines to shut down"),
    "reset": ("power", MACHINES, "Press the reset button of virtual machines"),
    "migrate": ("migrate", MACHINES, "Move a virtual machine to another node"),
    "move": ("move", MACHINES, "Move one side of a virtual machine's replicated disks to another node"),
    "console": ("console", MACHINES, "Use the serial console of a virtual machine"),
    "lock": ("machine", MACHINES, "Lock a virtual machine against changes, or unlock it"),
    "register": ("machine", MACHINES, "Register a virtual machine on this node"),
    "failover": ("machine", MACHINES, "Take a virtual machine over from a node that is gone"),
    "unregister": ("machine", MACHINES, "Take a virtual machine off its node, and keep it"),
    "hard-drive": ("hard_drive", STORAGE, "Hard drives: list, create, attach, detach, import, delete"),
    "verify": ("verify", STORAGE, "Compare both sides of replicated disks"),
    "resync": ("verify", STORAGE, "Make both sides of replicated disks equal again"),
    "iso": ("iso", STORAGE, "ISO images: list, add, delete"),
    "storage": ("storage", STORAGE, "Storage backends: list, create, delete, and their nodes"),
    "network": ("network", STORAGE, "Networks: list, create, delete"),
    "drbd": ("drbd", STORAGE, "Replication of hard drives by DRBD: enable, list, attach"),
    "user": ("user", ACCOUNTS, "Users: list, create, delete, passwords, permissions"),
    "group": ("group", ACCOUNTS, "Groups: list, create, delete, permissions, members"),
    "permission": (
        "permission",
        ACCOUNTS,
        "List permissions; give and take the rights of users, owners and superusers",
    ),
    "audit": ("audit", ACCOUNTS, "Who did what: list"),
    "cluster": ("cluster", NODES, "The cluster: add nodes, remove them, choose the leader"),
    "node": ("node", NODES, "Show and change the settings of the nodes; drain one"),
    "task": ("task", NODES, "Long work: list, watch, cancel"),
    "clear-method-lock": ("task", NODES, "Cancel the tasks that are running"),
    "login": ("session", SESSIONS, "Log in and keep the session for later commands"),
    "logout": ("session", SESSIONS, "End the session that is kept"),
    "whoami": ("session", SESSIONS, "Show who you are to mcvirt, and what you may do everywhere"),
    "session": ("session", SESSIONS, "Sessions: list, revoke"),
    "exit": ("session", SESSIONS, "Leave the interactive shell"),
}

# Global flags that take a value: what must be skipped to find the command's name.
VALUE_FLAGS = frozenset({"--host", "--ca-file", "--username", "-U", "--password", "--password-file", "--timeout"})


def next_word(argv: list[str], start: int = 0) -> int:
    """The index of the first word from *start* on that is neither a global flag nor its value; -1 if there is none."""
    index = start
    while index < len(argv):
        word = argv[index]
        if not word.startswith("-") or word in ("-", "--"):
            return index
        index += 2 if word in VALUE_FLAGS else 1
    return -1
