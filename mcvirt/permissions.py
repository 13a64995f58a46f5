"""What a user may be allowed to do, by the names that operators know."""

from __future__ import annotations

from enum import Enum


class Permission(str, Enum):
    """One right. Superusers have all of them."""

    CHANGE_VM_POWER_STATE = "CHANGE_VM_POWER_STATE"
    CREATE_VM = "CREATE_VM"
    MODIFY_VM = "MODIFY_VM"
    MANAGE_VM_USERS = "MANAGE_VM_USERS"
    VIEW_VNC_CONSOLE = "VIEW_VNC_CONSOLE"
    CLONE_VM = "CLONE_VM"
    DELETE_CLONE = "DELETE_CLONE"
    MANAGE_HOST_NETWORKS = "MANAGE_HOST_NETWORKS"
    MANAGE_CLUSTER = "MANAGE_CLUSTER"
    MANAGE_DRBD = "MANAGE_DRBD"
    CAN_IGNORE_DRBD = "CAN_IGNORE_DRBD"
    MIGRATE_VM = "MIGRATE_VM"
    DUPLICATE_VM = "DUPLICATE_VM"
    SET_VM_LOCK = "SET_VM_LOCK"
    BACKUP_VM = "BACKUP_VM"
    CAN_IGNORE_CLUSTER = "CAN_IGNORE_CLUSTER"
    MOVE_VM = "MOVE_VM"
    SET_VM_NODE = "SET_VM_NODE"
    MANAGE_USERS = "MANAGE_USERS"
    SUPERUSER = "SUPERUSER"
    MANAGE_NODE = "MANAGE_NODE"
    SET_SYNC_STATE = "SET_SYNC_STATE"
    MANAGE_ISO = "MANAGE_ISO"
    MANAGE_STORAGE_BACKEND = "MANAGE_STORAGE_BACKEND"
    MANAGE_STORAGE_VOLUME = "MANAGE_STORAGE_VOLUME"
    MANAGE_GROUPS = "MANAGE_GROUPS"
    MANAGE_GROUP_MEMBERS = "MANAGE_GROUP_MEMBERS"
    MANAGE_GLOBAL_WATCHDOG = "MANAGE_GLOBAL_WATCHDOG"
    MODIFY_HARD_DRIVE = "MODIFY_HARD_DRIVE"
    MANAGE_VM_SNAPSHOTS = "MANAGE_VM_SNAPSHOTS"
    TEST_SUPERUSER_PERMISSION = "TEST_SUPERUSER_PERMISSION"
    TEST_OWNER_PERMISSION = "TEST_OWNER_PERMISSION"
    TEST_USER_PERMISSION = "TEST_USER_PERMISSION"


class Access(str, Enum):
    """What an operation may ask for instead of a permission."""

    ANYONE = "ANYONE"  # also who has not logged in: the login itself
    ANY_USER = "ANY_USER"
    PEER = "PEER"  # only other nodes of the cluster, never a user and never root
    SELF = "SELF"  # operations on one's own account and sessions; the service sees who it is
    JOINER = "JOINER"  # only who has the secret of this node's connect string: the member that takes it in


DESCRIPTIONS: dict[Permission, str] = {
    Permission.CHANGE_VM_POWER_STATE: "Start, stop, shut down and reset virtual machines",
    Permission.CREATE_VM: "Create virtual machines",
    Permission.MODIFY_VM: "Change and delete virtual machines",
    Permission.MANAGE_VM_USERS: "Give and take rights on a virtual machine",
    Permission.VIEW_VNC_CONSOLE: "Use the console and see how to reach the VNC display",
    Permission.CLONE_VM: "Clone virtual machines",
    Permission.DELETE_CLONE: "Delete virtual machines that are clones",
    Permission.MANAGE_HOST_NETWORKS: "Create and delete networks",
    Permission.MANAGE_CLUSTER: "Add nodes to the cluster and remove them",
    Permission.MANAGE_DRBD: "Enable DRBD, verify and repair replicated disks",
    Permission.CAN_IGNORE_DRBD: "Go on although DRBD warns",
    Permission.MIGRATE_VM: "Migrate virtual machines to another node",
    Permission.DUPLICATE_VM: "Duplicate virtual machines",
    Permission.SET_VM_LOCK: "Lock and unlock virtual machines",
    Permission.BACKUP_VM: "Back up virtual machines",
    Permission.CAN_IGNORE_CLUSTER: "Go on although a node can't be reached",
    Permission.MOVE_VM: "Move the disks of a virtual machine to another node",
    Permission.SET_VM_NODE: "Register and unregister virtual machines on nodes",
    Permission.MANAGE_USERS: "Create, change and delete users",
    Permission.SUPERUSER: "Everything",
    Permission.MANAGE_NODE: "Change the settings of nodes",
    Permission.SET_SYNC_STATE: "Record the result of a verification (for DRBD's handlers)",
    Permission.MANAGE_ISO: "Add and delete ISO images",
    Permission.MANAGE_STORAGE_BACKEND: "Create, change and delete storage backends",
    Permission.MANAGE_STORAGE_VOLUME: "Work on single volumes of a storage backend (for peers)",
    Permission.MANAGE_GROUPS: "Create, change and delete groups",
    Permission.MANAGE_GROUP_MEMBERS: "Put users into groups and take them out",
    Permission.MANAGE_GLOBAL_WATCHDOG: "Change the watchdog's defaults",
    Permission.MODIFY_HARD_DRIVE: "Create, grow, import and delete hard drives",
    Permission.MANAGE_VM_SNAPSHOTS: "Make and delete snapshots of virtual machines",
    Permission.TEST_SUPERUSER_PERMISSION: "Nothing; for tests of superusers' rights",
    Permission.TEST_OWNER_PERMISSION: "Nothing; for tests of owners' rights",
    Permission.TEST_USER_PERMISSION: "Nothing; for tests of users' rights",
}

GROUP_USER = frozenset({Permission.CHANGE_VM_POWER_STATE, Permission.VIEW_VNC_CONSOLE, Permission.TEST_USER_PERMISSION})
GROUP_OWNER = frozenset(
    {
        Permission.CHANGE_VM_POWER_STATE,
        Permission.MANAGE_VM_USERS,
        Permission.VIEW_VNC_CONSOLE,
        Permission.CLONE_VM,
        Permission.DELETE_CLONE,
        Permission.DUPLICATE_VM,
        Permission.TEST_OWNER_PERMISSION,
        Permission.MANAGE_GROUP_MEMBERS,
    }
)
DEFAULT_GROUPS = {"user": GROUP_USER, "owner": GROUP_OWNER}

# Only these mean something for one virtual machine; the others are global by nature.
VM_SCOPED = frozenset(
    {
        Permission.CHANGE_VM_POWER_STATE,
        Permission.MODIFY_VM,
        Permission.MANAGE_VM_USERS,
        Permission.VIEW_VNC_CONSOLE,
        Permission.CLONE_VM,
        Permission.DELETE_CLONE,
        Permission.MIGRATE_VM,
        Permission.DUPLICATE_VM,
        Permission.SET_VM_LOCK,
        Permission.BACKUP_VM,
        Permission.MOVE_VM,
        Permission.SET_VM_NODE,
        Permission.MODIFY_HARD_DRIVE,
        Permission.MANAGE_VM_SNAPSHOTS,
        Permission.MANAGE_GROUP_MEMBERS,
        Permission.TEST_OWNER_PERMISSION,
        Permission.TEST_USER_PERMISSION,
    }
)
