"""Builds the guest's ISO from Debian's own kernel and busybox.

Needs `apt-get` with Debian 12's lists, `dpkg-deb` and `xorriso`; no root, nothing is installed.

    python3 -m tests.guest.build FILE.iso [--cache DIRECTORY]
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

FULL = "linux-image-amd64"
"""The package that depends on the kernel with all drivers."""
CLOUD = "linux-image-cloud-amd64"
"""The one that boots in half the time, but sees no SATA (so no CD-ROM on q35), no USB and no e1000."""

PACKAGES = ("busybox-static", "isolinux", "syslinux-common")

MODULES = (
    *("evdev", "button"),
    *("virtio_pci", "virtio-rng", "virtio_balloon", "virtio_console", "virtio_net", "virtio_blk"),
    *("sd_mod", "sr_mod", "virtio_scsi", "ahci", "ata_piix", "e1000", "e1000e"),
    *("xhci_pci", "ehci_pci", "uhci_hcd", "usb_storage"),
)
"""In the order they are loaded; what they depend on is loaded before them."""

NOT_IN_CLOUD = ("ahci", "e1000", "e1000e", "xhci_pci", "ehci_pci", "uhci_hcd", "usb_storage")

KERNEL_ARGUMENTS = (
    "console=ttyS0 8250.nr_uarts=1 quiet loglevel=1 panic=-1 mitigations=off nokaslr apparmor=0 selinux=0 "
    "audit=0 no_timer_check tsc=reliable random.trust_cpu=on rcupdate.rcu_expedited=1 cryptomgr.notests "
    "nowatchdog"
)

ISOLINUX_CONFIG = f"""\
SERIAL 0 115200
PROMPT 0
TIMEOUT 1
DEFAULT guest
LABEL guest
  KERNEL /vmlinuz
  INITRD /initrd
  APPEND {KERNEL_ARGUMENTS}
"""

HERE = Path(__file__).resolve().parent


class BuildFailed(Exception):
    """A command the build needs did not succeed; the text says which and what it printed."""


class ListsOutdated(BuildFailed):
    """The packages cannot be had from the archive by the lists that are here."""


def build(target: Path, cache: Path, *, kernel: str = FULL) -> Path:
    """Leave the guest's ISO at *target* and return that; *cache* keeps it for the next time.

    It is built again when a package or a file here has changed.
    *target* appears complete or not at all, also when several builds run at once.
    """
    cache.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        image = _cached(cache, kernel)
    except ListsOutdated:
        _run("apt-get", "-q", "update")
        image = _cached(cache, kernel)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".guest-") as name:
        shutil.copyfile(image, Path(name) / "iso")
        (Path(name) / "iso").replace(target)
    return target


def _cached(cache: Path, kernel: str) -> Path:
    packages = (_kernel_package(kernel), *PACKAGES)
    image = cache / f"guest-{_key(packages)}.iso"
    with _alone(cache):
        for left_over in cache.glob(".building-*"):
            shutil.rmtree(left_over)
        if not image.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix=".building-") as name:
                _make(packages, Path(name)).replace(image)
    return image


@contextlib.contextmanager
def _alone(cache: Path) -> Iterator[None]:
    with (cache / "guest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _key(packages: tuple[str, ...]) -> str:
    """Names the image by all that goes into it: the packages as the archive has them, and the files here."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix="guest-") as empty:
        # In an empty directory: a package that lies there already is not listed.
        digest.update(_apt_download("--print-uris", *packages, cwd=Path(empty)))
    for source in ("build.py", "init.sh"):
        digest.update((HERE / source).read_bytes())
    return digest.hexdigest()[:16]


def _kernel_package(kernel: str) -> str:
    control = _apt("apt-cache", "show", "--no-all-versions", kernel).decode()
    found = re.search(r"^Depends:.*?\b(linux-image-\S+-amd64)\b", control, re.MULTILINE)
    if not found:
        raise ListsOutdated(f"{kernel} depends on no kernel")
    return found[1]


def _make(packages: tuple[str, ...], work: Path) -> Path:
    debs, root, iso = work / "debs", work / "root", work / "iso"
    for directory in (debs, root, iso):
        directory.mkdir()
    _apt_download(*packages, cwd=debs)
    for deb in sorted(debs.glob("*.deb")):
        _run("dpkg-deb", "-x", str(deb), str(root))
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    shutil.copyfile(kernel, iso / "vmlinuz")
    shutil.copyfile(root / "usr/lib/ISOLINUX/isolinux.bin", iso / "isolinux.bin")
    shutil.copyfile(root / "usr/lib/syslinux/modules/bios/ldlinux.c32", iso / "ldlinux.c32")
    (iso / "isolinux.cfg").write_text(ISOLINUX_CONFIG)
    (iso / "initrd").write_bytes(_initrd(root))
    image = work / "guest.iso"
    _run(
        *("xorriso", "-as", "mkisofs", "-quiet", "-V", "MCVIRT_GUEST", "-o", str(image)),
        *("-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4"),
        *("-boot-info-table", str(iso)),
    )
    return image


def _initrd(root: Path) -> bytes:
    modules = _modules(next((root / "lib/modules").iterdir()))
    archive = Cpio()
    for directory in ("bin", "dev", "modules", "proc", "sys", "tmp"):
        archive.directory(directory)
    # The kernel opens it for /init before devtmpfs is there.
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", (root / "bin/busybox").read_bytes(), executable=True)
    archive.file("init", (HERE / "init.sh").read_bytes(), executable=True)
    for module in modules:
        archive.file(f"modules/{module.name}", module.read_bytes())
    archive.file("modules/order", "".join(f"{module.name}\n" for module in modules).encode())
    return gzip.compress(archive.closed(), 1, mtime=0)


def _modules(tree: Path) -> list[Path]:
    """The files of MODULES and of what they depend on, each after what it needs, without those built in."""
    # The package has no modules.dep (depmod makes it at installation): each module names what it needs.
    files = {_module_name(path): path for path in sorted(tree.rglob("*.ko"))}
    built_in = {_module_name(Path(line)) for line in (tree / "modules.builtin").read_text().splitlines()}
    ordered: list[Path] = []

    absent = NOT_IN_CLOUD if "-cloud-" in tree.name else ()

    def add(name: str) -> None:
        if name in absent or name in built_in or files.get(name) in ordered:
            return
        if name not in files:
            raise BuildFailed(f"the kernel in {tree.name} has no module {name}")
        needs = re.search(rb"\0depends=([^\0]*)\0", files[name].read_bytes())
        for needed in needs[1].decode().split(",") if needs and needs[1] else ():
            add(needed.replace("-", "_"))
        ordered.append(files[name])

    for wanted in MODULES:
        add(wanted.replace("-", "_"))
    return ordered


def _module_name(path: Path) -> str:
    return path.stem.replace("-", "_")


class Cpio:
    """An archive in the kernel's format (newc), owned by root whoever writes it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def directory(self, name: str) -> None:
        self._add(name, 0o040755)

    def file(self, name: str, content: bytes, *, executable: bool = False) -> None:
        self._add(name, 0o100755 if executable else 0o100644, content)

    def character_device(self, name: str, major: int, minor: int) -> None:
        self._add(name, 0o020600, device=(major, minor))

    def closed(self) -> bytes:
        self._add("TRAILER!!!", 0)
        return b"".join(self._parts)

    def _add(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        path = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self._parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]


def _apt_download(*arguments: str, cwd: Path) -> bytes:
    return _apt("apt-get", "-q", "-o", "APT::Sandbox::User=", "download", *arguments, cwd=cwd)


def _apt(*argv: str, cwd: Path | None = None) -> bytes:
    try:
        return _run(*argv, cwd=cwd)
    except BuildFailed as failed:
        raise ListsOutdated(str(failed)) from failed


def _run(*argv: str, cwd: Path | None = None) -> bytes:
    plain = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, env=plain, check=False)
    except FileNotFoundError as missing:
        raise BuildFailed(f"{argv[0]} is not installed") from missing
    if done.returncode:
        printed = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise BuildFailed(f"{' '.join(argv)}: exit {done.returncode}\n{printed}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the tiny guest's ISO.")
    parser.add_argument("target", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(".cache/guest"))
    parser.add_argument("--kernel", choices=(FULL, CLOUD), default=FULL)
    arguments = parser.parse_args()
    try:
        print(build(arguments.target, arguments.cache, kernel=arguments.kernel))
    except BuildFailed as failed:
        sys.exit(str(failed))


if __name__ == "__main__":
    main()
