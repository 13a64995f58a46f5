"""The system of a node: Debian by mmdebstrap, with what mcvirt is installed and run with, but without mcvirt.

The recipe is in the directory `image`: the packages, the units that are masked, files as they lie in the node, and the
initrd's first program.
"""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from tests.lab import cache
from tests.lab.cache import HERE, CannotRun, LabFailed, run

SUITE = "bookworm"
RECIPE = HERE / "image"
INITRD_MODULES = ("virtio_pci", "virtio_blk")
"""What the root disk needs; ext4 is in the kernel."""


def system() -> Path:
    """The directory with the tree `root`, vmlinuz, initrd, id (the key to log in with) and files.json."""
    return cache.made("system", cache.digest(SUITE, cache.content(HERE, [Path(__file__), RECIPE])), _build)


def words(name: str) -> list[str]:
    """The words of a file of the recipe, without comments."""
    return [word for line in (RECIPE / name).read_text().splitlines() for word in line.partition("#")[0].split()]


def _build(place: Path) -> None:
    root = place / "root"
    unwanted = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info", "lintian")]
    command = [
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"),
        *('--aptopt=Apt::Install-Recommends "0"', "--include=" + ",".join(words("packages")), *unwanted),
        *(SUITE, root),
    ]
    try:
        run(command, within=1800)
    except LabFailed as error:
        raise CannotRun(f"the lab needs Debian packages from the network, and mmdebstrap fails: {error}") from error
    for file in sorted(path for path in (RECIPE / "root").rglob("*") if path.is_file()):
        target = root / file.relative_to(RECIPE / "root")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    for unit in words("mask"):
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    run(["chroot", root, "systemctl", "-q", "enable", "lab-net.service", "libvirtd.service"], within=60)
    (root / "etc/hostname").unlink(missing_ok=True)  # each node's comes from its kernel's command line
    _make_keys(place, root)
    kernel = next((root / "boot").glob("vmlinuz-*"))
    shutil.copy(kernel, place / "vmlinuz")
    (place / "initrd").write_bytes(_initrd(root, kernel.name.removeprefix("vmlinuz-")))
    (place / "files.json").write_text(json.dumps(files_of(root)))


def _make_keys(place: Path, root: Path) -> None:
    """One key for all: into the nodes, and between them."""
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", place / "id"], within=60)
    directory = root / "root/.ssh"
    shutil.copy(place / "id", directory / "id_ed25519")
    shutil.copy(place / "id.pub", directory / "authorized_keys")
    for path in (directory, *directory.iterdir()):
        path.chmod(0o700 if path.is_dir() else 0o600)


def _initrd(root: Path, release: str) -> bytes:
    modules = root / "lib/modules" / release
    needs = dict(line.split(":") for line in (modules / "modules.dep").read_text().splitlines())
    wanted: dict[str, bytes] = {}
    for name in (name for name in needs if Path(name).stem in INITRD_MODULES):
        for path in [name, *needs[name].split()][::-1]:
            wanted[Path(path).name] = (modules / path).read_bytes()
    init = (RECIPE / "initrd").read_text().replace("in MODULES", "in " + " ".join(wanted))
    return cpio(
        [
            *((name, 0o40755, b"") for name in ("bin", "dev", "root")),
            *((name, 0o100644, data) for name, data in wanted.items()),
            ("bin/busybox", 0o100755, (root / "bin/busybox").read_bytes()),
            ("init", 0o100755, init.encode()),
        ]
    )


def cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """An archive as the kernel takes for an initrd, of names, modes and contents."""
    archive = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        encoded = name.encode() + b"\0"
        head = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in head) + encoded
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def files_of(root: Path) -> dict[str, list[object]]:
    """What /etc and /usr below *root* hold, but for what Python compiles: names, and what tells a change."""
    found: dict[str, list[object]] = {}
    for top in ("etc", "usr"):
        for path in (root / top).rglob("*"):
            if "__pycache__" in path.parts:
                continue
            at = path.lstat()
            link = str(path.readlink()) if path.is_symlink() else ""
            size = stat.S_ISREG(at.st_mode) and at.st_size
            found[f"/{path.relative_to(root)}"] = [at.st_mode, at.st_uid, at.st_gid, size, link]
    return found
