"""What a user may do: own permissions and those of groups, everywhere or on one virtual machine."""

from __future__ import annotations

from mcvirt.errors import NotPermitted
from mcvirt.permissions import VM_SCOPED, Permission
from mcvirtd.auth.caller import Caller
from mcvirtd.state.records import GroupRecord, UserRecord
from mcvirtd.state.store import Change, Store

_ALL = frozenset(Permission)


class Rights:
    """Answers from the records; remembered until a user or a group changes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[tuple[str, str | None], frozenset[Permission]] = {}
        store.subscribe(self._changed)

    def _changed(self, change: Change) -> None:
        kinds = {kind for kind, _ in (*change.puts, *change.deletes)}
        if kinds & {UserRecord.kind, GroupRecord.kind, "vm"}:
            self._known = {}

    def of(self, user: str, vm: str | None = None) -> frozenset[Permission]:
        """All permissions of *user*: everywhere, and with *vm* also those held for that virtual machine alone."""
        known = self._known
        found = known.get((user, vm))
        if found is None:
            found = self._gather(user, vm)
            # A caller can name any machine, existing or not: that must not fill the memory.
            if len(known) < 10000 and len(vm or "") <= 64:
                known[user, vm] = found
        return found

    def _gather(self, user: str, vm: str | None) -> frozenset[Permission]:
        record = self._store.get(UserRecord, user)
        if record is None:
            return frozenset()
        if record.superuser:
            return _ALL
        everywhere = set(record.permissions)
        here: set[str] = set(record.vm_permissions.get(vm, ())) if vm else set()
        for group in self._store.all(GroupRecord).values():
            if user in group.users:
                everywhere.update(group.permissions)
            if vm and user in group.vm_users.get(vm, ()):
                here.update(group.permissions)
        # A group may have permissions that mean nothing for one machine; membership for one machine must not give
        # them everywhere.
        names = everywhere | {name for name in here if name in VM_SCOPED}
        # Superusers are marked in their record. No list of permissions makes one, whoever wrote it.
        names.discard(Permission.SUPERUSER.value)
        return frozenset(permission for permission in Permission if permission.value in names)

    def knows(self, user: str) -> bool:
        """Whether there is such a user."""
        return self._store.get(UserRecord, user) is not None

    def is_superuser(self, caller: Caller) -> bool:
        """Whether the caller may do everything."""
        record = self._store.get(UserRecord, caller.user)
        return caller.root or (record is not None and record.superuser)

    def allowed(self, caller: Caller, permission: Permission, vm: str | None = None) -> bool:
        """Whether the caller has *permission*, for *vm* where one is named."""
        return caller.root or permission in self.of(caller.user, vm)

    def require(self, caller: Caller, permission: Permission, vm: str | None = None) -> None:
        """Raise NotPermitted unless the caller has *permission*."""
        if not self.allowed(caller, permission, vm):
            scope = f" on virtual machine '{vm}'" if vm else ""
            raise NotPermitted(user=caller.user, permission=permission.value, scope=scope)
