"""The lab: complete Debian nodes with the kernel's own DRBD, LVM and libvirt, as emulated machines; see docs/design."""
