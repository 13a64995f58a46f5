"""The disk of a node: the system, and mcvirt in it, installed as operators do on machines without network.

The installation happens in the tree, at this machine's speed: in an emulated machine it
takes minutes.
"""

from __future__ import annotations

import re
import shutil
import sys
import threading
from pathlib import Path

from tests.lab import cache
from tests.lab.cache import HERE, ROOT, CannotRun, LabFailed, run
from tests.lab.system import system

SIZE = "6G"
"""Of the root disk."""
SOURCES = tuple(
    ROOT / name
    for name in (
        *("Makefile", "pyproject.toml", "setup.py", "README.md", "CHANGELOG.md", "LICENSE"),
        *(
            "mcvirt",
            "mcvirt_client",
            "mcvirtd",
            "systemd",
            "docs/man",
            "docs/mcvirtd.toml.example",
            "docs/permissions.md",
            "docs/clustering.md",
        ),
    )
)
"""What `make install` reads."""
WHEELS_FOR = tuple(ROOT / name for name in ("pyproject.toml", "setup.py"))
"""What says which wheels it needs."""
IN_THE_NODE = "opt/mcvirt"
"""Below it are `source` and `wheels`, as an operator has put them there."""
_OFFLINE = re.compile(r"NewConnectionError|NameResolutionError|Temporary failure in name resolution|ProxyError")
"""What pip says when it has no network."""
# Where the host's programs come from, for those who have not all of them.
_PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "ip": "iproute2",
    "unshare": "util-linux",
}


def refuse_where_it_cannot_be() -> None:
    """CannotRun, with what is missing, unless nodes can be built and started here."""
    missing = sorted({package for program, package in _PROGRAMS.items() if shutil.which(program) is None})
    if missing:
        raise CannotRun(f"the lab needs the Debian packages {', '.join(missing)}; `make deps` installs them")
    if not Path("/dev/net/tun").exists():
        raise CannotRun("the lab needs /dev/net/tun, for the network between the nodes")
    try:
        run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], within=30)
    except LabFailed as error:
        raise CannotRun("the lab needs root, and the right to make namespaces") from error


def image() -> Path:
    """The directory with root.img, vmlinuz, initrd and id (the key to log in with); made if need be."""
    refuse_where_it_cannot_be()
    wheels = _InBackground(_wheels)
    base = system()
    own = cache.content(HERE, [Path(__file__)])
    key = cache.digest(base.name, own, cache.content(ROOT, SOURCES), wheels.result().name)
    return cache.made("image", key, lambda place: _build(place, base, wheels.result()))


class _InBackground:
    """A call in a thread, for what may be done while something else is."""

    def __init__(self, call: object) -> None:
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value, self._error = self._call(), None  # type: ignore[operator]
        except BaseException as error:
            self._error = error

    def result(self) -> Path:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[no-any-return]


def _wheels() -> Path:
    def build(place: Path) -> None:
        try:
            run(["make", "-C", ROOT, "--no-print-directory", "wheels", f"WHEELS={place}"], within=900)
        except LabFailed as error:
            if _OFFLINE.search(str(error)):
                raise CannotRun(f"the lab needs Python packages from the network: {error}") from error
            raise

    return cache.made("wheels", cache.digest(sys.version_info[:2], cache.content(ROOT, WHEELS_FOR)), build)


# --- with mcvirt ----------------------------------------------------------------------------------------------------


def _build(place: Path, base: Path, wheels: Path) -> None:
    for name in ("vmlinuz", "initrd", "id", "id.pub", "files.json"):
        shutil.copy(base / name, place)
    # What is mounted there goes with the namespace.
    command = [sys.executable, "-m", "tests.lab.image", str(place), str(base), str(wheels)]
    run(["unshare", "--mount", "--propagation", "private", *command], within=900, cwd=ROOT)
    cache.remove(place / "overlay")


def _install(place: Path, base: Path, wheels: Path) -> None:
    """Make root.img in *place*: the system with mcvirt on top of it. Runs in a mount namespace of its own."""
    top, work, root = (place / "overlay" / name for name in ("top", "work", "root"))
    for directory in (top, work, root):
        directory.mkdir(parents=True)
    layers = f"lowerdir={base / 'root'},upperdir={top},workdir={work}"
    run(["mount", "-t", "overlay", "overlay", "-o", layers, root], within=30)
    run(["mount", "-t", "proc", "proc", root / "proc"], within=30)
    source = root / IN_THE_NODE / "source"
    source.mkdir(parents=True)
    shutil.copytree(wheels, root / IN_THE_NODE / "wheels")
    for path in SOURCES:
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, target)
    clean = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PIP_NO_INDEX=1"]
    make = ["make", "-C", f"/{IN_THE_NODE}/source", "install", f"WHEELS=/{IN_THE_NODE}/wheels"]
    run(["chroot", root, *clean, *make], within=600)
    run(["chroot", root, "systemctl", "-q", "enable", "mcvirtd.service"], within=60)
    run(["umount", root / "proc"], within=30)
    options = ["-t", "ext4", "-L", "root", "-J", "size=64", "-E", "lazy_itable_init=1,root_owner=0:0"]
    run(["mke2fs", "-q", *options, "-d", root, place / "root.img", SIZE], within=600)


if __name__ == "__main__":
    _install(*(Path(word) for word in sys.argv[1:4]))
