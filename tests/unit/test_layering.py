"""Who may import whom, and the other rules that a look at the source can hold.

The rules are data below; `violations` holds them against one module's source, so each is also seen to fail on a toy.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("mcvirt", "mcvirt_client", "mcvirtd")
LONGEST = 450

# Package or module -> what it and everything below it may import of ours. The longest name that fits a module decides.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "mcvirt": ("mcvirt",),
    "mcvirt_client": ("mcvirt", "mcvirt_client"),
    "mcvirtd": ("mcvirt", "mcvirtd"),
    # The ground knows errors and pure words only.
    "mcvirt.errors": (),
    "mcvirt.permissions": (),
    "mcvirt.names": ("mcvirt.errors",),
    "mcvirt.units": ("mcvirt.errors",),
    "mcvirt.types": ("mcvirt.types", "mcvirt.units", "mcvirt.permissions"),
    "mcvirt.api": ("mcvirt.api", "mcvirt.types", "mcvirt.permissions", "mcvirt.rpc.contract"),
    # Privileged verbs: no state, no policy.
    "mcvirtd.host": ("mcvirtd.host", "mcvirt.errors", "mcvirt.names", "mcvirt.units"),
    "mcvirtd.host.drbd": (
        *("mcvirtd.host", "mcvirtd.drbd.commands", "mcvirtd.drbd.config", "mcvirtd.drbd.status"),
        *("mcvirt.errors", "mcvirt.names", "mcvirt.units", "mcvirt.types.drbd"),
    ),
    # From values to values.
    "mcvirtd.drbd.config": ("mcvirt.errors", "mcvirt.names", "mcvirt.units"),
    "mcvirtd.drbd.commands": ("mcvirtd.drbd.config",),
    "mcvirtd.drbd.status": ("mcvirt.types",),
    "mcvirtd.hypervisor.xml": (
        *("mcvirtd.hypervisor.xml", "mcvirtd.hypervisor.design", "mcvirtd.hypervisor.designer"),
        *("mcvirt.errors", "mcvirt.names", "mcvirt.units", "mcvirt.types"),
    ),
    "mcvirtd.hypervisor.design": ("mcvirt.errors", "mcvirt.types"),
    "mcvirtd.hypervisor.designer": ("mcvirtd.hypervisor.design", "mcvirt.errors", "mcvirt.types", "mcvirt.units"),
    # libvirt is told about domains, and not about our records.
    "mcvirtd.hypervisor": ("mcvirtd.hypervisor", "mcvirtd.host", "mcvirt.errors", "mcvirt.types", "mcvirt.units"),
    # The store knows nothing of what is done with its records.
    "mcvirtd.state": ("mcvirtd.state", "mcvirt.errors", "mcvirt.types"),
    "mcvirtd.settings": ("mcvirt.errors", "mcvirt.names", "mcvirt.units"),
}

# Module or package -> the only modules and packages that may import it.
ONLY_IMPORTED_BY: dict[str, tuple[str, ...]] = {
    "mcvirtd.daemon": ("mcvirtd.main",),
    "mcvirtd.main": (),
    "mcvirtd.rpc": ("mcvirtd.rpc", "mcvirtd.daemon"),
    "mcvirt_client.cli": ("mcvirt_client.cli",),
    # One owner per outside thing.
    "subprocess": ("mcvirtd.host.run",),
    "libvirt": ("mcvirtd.hypervisor.libvirt", "mcvirtd.hypervisor.libvirt_moving"),
    "libvirtmod": (),
    "lxml": ("mcvirtd.hypervisor.xml",),
    "xml": (),
    "sqlite3": ("mcvirtd.state", "mcvirtd.check", "mcvirtd.probes"),
    "Pyro4": ("mcvirt.rpc.transport", "mcvirt.rpc.codec", "mcvirtd.rpc"),
    "serpent": (),
    "cryptography": ("mcvirtd.cluster", "mcvirtd.auth.passwords"),
    "argcomplete": ("mcvirt_client.cli.completion",),
    # Code that whoever writes the bytes can choose.
    **dict.fromkeys(("pickle", "marshal", "shelve", "dill"), ()),
}
INSTALLED = frozenset(("msgspec", *(name for name in ONLY_IMPORTED_BY if name not in sys.stdlib_module_names)))

# Starting a program by other means than subprocess: the owner is the same.
STARTS_PROGRAMS = re.compile(
    r"os\.(system|popen|exec[lv]p?e?|spawn[lv]p?e?|posix_spawnp?|fork|forkpty)|pty\.(spawn|fork)"
)
# Pure modules neither look at the machine nor at the clock, and are the same every time.
PURE = (
    *("mcvirtd.hypervisor.xml", "mcvirtd.hypervisor.design", "mcvirtd.hypervisor.designer", "mcvirt.units"),
    *("mcvirtd.drbd.config", "mcvirtd.drbd.commands", "mcvirtd.drbd.status"),
)
IMPURE = frozenset(
    ("asyncio", "datetime", "glob", "io", "os", "pathlib", "random", "secrets", "shutil", "socket", "ssl", "tempfile")
) | frozenset(("threading", "time", "urllib.request", "uuid"))
EMPTY_NAMES = re.compile(r"(^|_)(util|utils|helper|helpers|manager|managers|misc|common)($|_)")
# An installed mcvirt knows these places and no others: what is elsewhere, the administrator names.
# (Volumes of a simulated backend are nowhere.)
KNOWN_PLACES = ("/boot/", "/dev/", "/etc/", "/proc/", "/run/", "/sys/", "/usr/", "/var/", "/simulated/")
PLACE = re.compile(r"/[a-z][a-z0-9_-]+(/\S*)?")


def sources() -> Iterator[tuple[str, str]]:
    """(module, source) of all that is shipped."""
    for package in SHIPPED:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            yield ".".join(parts), path.read_text()


def within(module: str, packages: tuple[str, ...]) -> bool:
    """Whether *module* is one of *packages* or below one."""
    return any(module == package or module.startswith(package + ".") for package in packages)


def imports(tree: ast.AST, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, also late ones, relative ones, those for types only, and by importlib."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: -node.level + (1 if is_package else 0) or None]
                base = ".".join([*above, *([base] if base else [])])
            # `from package import name` imports the module package.name where there is one.
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value)


def _allowed(module: str) -> tuple[str, ...]:
    fitting = [name for name in MAY_IMPORT if within(module, (name,))]
    return MAY_IMPORT[max(fitting, key=len)]


def _import_rules(module: str, tree: ast.AST, is_package: bool) -> Iterator[str]:
    for line, name in imports(tree, module, is_package):
        top = name.partition(".")[0]
        if top in SHIPPED:
            # A bare `from mcvirt import __version__` is nobody's secret.
            if not within(name, (*_allowed(module), "mcvirt.__version__")):
                yield f"{line}: imports {name}"
        elif top not in sys.stdlib_module_names and top not in INSTALLED and top != "__future__":
            yield f"{line}: imports {name}, which is not installed with mcvirt"
        for owned, owners in ONLY_IMPORTED_BY.items():
            if within(name, (owned,)) and not within(module, owners):
                yield f"{line}: imports {name}, which belongs to {', '.join(owners) or 'nobody'}"
        if within(module, PURE) and (top in IMPURE or name in IMPURE):
            yield f"{line}: imports {name}, and is to be pure"


def _call_rules(module: str, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        called = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        line = getattr(node, "lineno", 0)
        if STARTS_PROGRAMS.fullmatch(called) and module != "mcvirtd.host.run":
            yield f"{line}: {called} belongs to mcvirtd.host.run"
        if called == "time.sleep":
            yield f"{line}: sleeps instead of waiting for something"
        if isinstance(node, ast.ImportFrom) and node.module == "time" and any(a.name == "sleep" for a in node.names):
            yield f"{line}: sleeps instead of waiting for something"
        if isinstance(node, ast.keyword) and node.arg == "shell" and ast.unparse(node.value) != "False":
            yield f"{node.value.lineno}: uses a shell"


def _place_rules(module: str, tree: ast.AST) -> Iterator[str]:
    if within(module, ("mcvirt_client.cli.commands",)):
        return  # examples in help texts name an operator's files
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if PLACE.fullmatch(text) and not (text + "/").startswith(KNOWN_PLACES):
            yield f"{line}: names {text!r}; the places known are {', '.join(KNOWN_PLACES)}"


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What *source* would do against the rules if it were *module*."""
    tree = ast.parse(source)
    found = [
        *_import_rules(module, tree, is_package),
        *_call_rules(module, tree),
        *_place_rules(module, tree),
    ]
    lines = source.count("\n")
    if lines > LONGEST:
        found.append(f"{lines}: has more than {LONGEST} lines")
    if EMPTY_NAMES.search(module.rpartition(".")[2]):
        found.append("1: has a name that says nothing")
    return list(dict.fromkeys(f"{module.replace('.', '/')}.py:{text}" for text in found))


def test_shipped_packages_keep_to_the_rules() -> None:
    found = [
        text
        for module, source in sources()
        for text in violations(module, source, is_package=(ROOT / module.replace(".", "/")).is_dir())
    ]
    assert not found, "\n" + "\n".join(found)


def test_every_shipped_package_is_looked_at() -> None:
    seen = {module for module, _ in sources()}
    assert {"mcvirt.errors", "mcvirt_client.client", "mcvirtd.host.run", "mcvirtd.hypervisor.libvirt"} <= seen


def test_rules_name_what_there_is() -> None:
    """A rule about a module that was renamed holds nothing."""
    seen = {module for module, _ in sources()}
    named = {*MAY_IMPORT, *PURE, *(owner for owners in ONLY_IMPORTED_BY.values() for owner in owners)}
    named |= {name for name in ONLY_IMPORTED_BY if name.partition(".")[0] in SHIPPED}
    assert {name for name in named if name not in seen} == set()


# --- each rule is seen to fail ------------------------------------------------------------------------------------

GOOD: list[tuple[str, str]] = [
    ("mcvirt.names", "import re\nfrom mcvirt.errors import BadArgument\n"),
    ("mcvirt.rpc.transport", "import Pyro4\n"),
    ("mcvirt_client.client", "from mcvirt.rpc.proxy import make_client\n"),
    ("mcvirtd.host.run", "import os, subprocess\nos.execv\n"),
    ("mcvirtd.host.lvm", "from mcvirtd.host import run\nfrom mcvirt.units import MIB\nfrom mcvirt import names\n"),
    ("mcvirtd.hypervisor.libvirt", "import libvirt\n"),
    ("mcvirtd.hypervisor.xml.disk", "from lxml import etree\nfrom mcvirtd.hypervisor.design import DiskDesign\n"),
    ("mcvirtd.main", "def f() -> None:\n    from mcvirtd.daemon import Daemon\n"),
    ("mcvirtd.vm.power", "import time\nfrom mcvirtd.state.store import Store\ntime.monotonic()\n"),
    ("mcvirtd.settings", "PATH = '/etc/mcvirt/mcvirtd.toml'\nURL = '//x'\nPART = 'a/tmp/b'\n"),
]

BAD: list[tuple[str, str, str]] = [
    ("mcvirt.units", "from mcvirtd.state.store import Store\n", "imports mcvirtd.state.store.Store"),
    ("mcvirt.units", "import mcvirt_client.client\n", "imports mcvirt_client.client"),
    ("mcvirt.types.vm", "from mcvirt.rpc import proxy\n", "imports mcvirt.rpc.proxy"),
    ("mcvirt_client.client", "import mcvirtd.settings\n", "imports mcvirtd.settings"),
    ("mcvirt_client.client", "from mcvirt_client.cli import output\n", "belongs to mcvirt_client.cli"),
    ("mcvirtd.check", "from mcvirt_client import Client\n", "imports mcvirt_client.Client"),
    ("mcvirtd.host.lvm", "from mcvirtd.state.records import VmRecord\n", "imports mcvirtd.state.records.VmRecord"),
    ("mcvirtd.host.lvm", "from mcvirt.types.vm import VmInfo\n", "imports mcvirt.types.vm.VmInfo"),
    ("mcvirtd.host.lvm", "from ..state import store\n", "imports mcvirtd.state.store"),
    ("mcvirtd.hypervisor.libvirt", "from mcvirtd.state.store import Store\n", "imports mcvirtd.state.store.Store"),
    ("mcvirtd.hypervisor.xml.disk", "from mcvirtd.host import files\n", "imports mcvirtd.host.files"),
    ("mcvirtd.hypervisor.xml.disk", "import os.path\n", "is to be pure"),
    ("mcvirtd.hypervisor.designer", "from time import time\n", "is to be pure"),
    ("mcvirtd.state.store", "from mcvirtd.tasks.task import Task\n", "imports mcvirtd.tasks.task.Task"),
    ("mcvirtd.vm.service", "from mcvirtd.rpc.guard import Guard\n", "belongs to mcvirtd.rpc"),
    ("mcvirtd.vm.service", "if TYPE_CHECKING:\n    from mcvirtd.rpc.guard import Guard\n", "belongs to mcvirtd.rpc"),
    ("mcvirtd.vm.service", "def f():\n    import mcvirtd.daemon\n", "belongs to mcvirtd.main"),
    ("mcvirtd.vm.service", "import importlib\nimportlib.import_module('mcvirtd.daemon')\n", "belongs to mcvirtd.main"),
    ("mcvirtd.vm.service", "import subprocess\n", "belongs to mcvirtd.host.run"),
    ("mcvirtd.vm.service", "from subprocess import run\n", "belongs to mcvirtd.host.run"),
    ("mcvirtd.vm.service", "import os\nos.system('x')\n", "os.system belongs to mcvirtd.host.run"),
    ("mcvirtd.vm.service", "import os\nos.execvp('x', [])\n", "os.execvp belongs to mcvirtd.host.run"),
    ("mcvirtd.host.run", "import subprocess\nsubprocess.run('x', shell=True)\n", "uses a shell"),
    ("mcvirtd.vm.service", "import libvirt\n", "belongs to mcvirtd.hypervisor.libvirt"),
    ("mcvirtd.hypervisor.libvirt", "from lxml import etree\n", "belongs to mcvirtd.hypervisor.xml"),
    ("mcvirtd.hypervisor.xml.disk", "import xml.etree.ElementTree\n", "belongs to nobody"),
    ("mcvirt_client.client", "import Pyro4.core\n", "belongs to mcvirt.rpc.transport"),
    ("mcvirtd.vm.service", "import sqlite3\n", "belongs to mcvirtd.state"),
    ("mcvirtd.state.store", "import pickle\n", "belongs to nobody"),
    ("mcvirtd.vm.service", "import requests\n", "not installed with mcvirt"),
    ("mcvirtd.vm.service", "import time\ntime.sleep(1)\n", "sleeps instead of waiting"),
    ("mcvirtd.vm.service", "from time import sleep\n", "sleeps instead of waiting"),
    ("mcvirtd.vm.service", "PATH = '/tmp/x'\n", "names '/tmp/x'"),
    ("mcvirtd.vm.service", "PATH = '/home/me/mcvirt'\n", "names '/home/me/mcvirt'"),
    ("mcvirtd.vm.service", "x = 1\n" * (LONGEST + 1), "more than 450 lines"),
    ("mcvirtd.vm.disk_utils", "", "a name that says nothing"),
    ("mcvirtd.manager", "", "a name that says nothing"),
]


@pytest.mark.parametrize(("module", "source"), GOOD, ids=[module for module, _ in GOOD])
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(module, source) == []


@pytest.mark.parametrize(("module", "source", "said"), BAD, ids=[f"{module}: {said}" for module, _, said in BAD])
def test_what_is_forbidden_is_found(module: str, source: str, said: str) -> None:
    assert any(said in text for text in violations(module, source))


def test_package_inits_resolve_relative_imports_from_themselves() -> None:
    found: Callable[[str], list[str]] = lambda source: [  # noqa: E731
        name for _, name in imports(ast.parse(source), "mcvirt.api", is_package=True)
    ]
    assert found("from . import vm\n") == ["mcvirt.api.vm"]
    assert found("from .. import errors\n") == ["mcvirt.errors"]
