"""A virtual machine from its creation to its end, on a libvirtd and an mcvirtd of its own: `make demo`."""
