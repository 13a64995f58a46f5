"""Gives a node something to list: `python -m tests.bench.fill COUNT BACKEND-PATH`, where the daemon is found.

Prints the milliseconds that each creation took its client, as JSON.
"""

from __future__ import annotations

import sys
import time

import msgspec

from mcvirt.types.storage import BackendSpec, BackendType
from mcvirt.types.vm import DiskSpec, VmSpec
from mcvirt_client import Client
from tests.bench.caller import PASSWORD, USER

MIB = 1024 * 1024


def main() -> None:
    count, path = int(sys.argv[1]), sys.argv[2]
    taken = []
    with Client.connect() as client:
        client.users.create(USER, PASSWORD)
        client.storage.create(BackendSpec(name="data", type=BackendType.FILE, nodes={"node1": path}))
        client.networks.create("lan", "br0")
        for number in range(count):
            spec = VmSpec(
                name=f"web{number}", memory=256 * MIB, cpu_count=1, disks=(DiskSpec(size=16 * MIB),), networks=("lan",)
            )
            began = time.perf_counter()
            client.vms.create(spec)
            taken.append((time.perf_counter() - began) * 1000)
    sys.stdout.buffer.write(msgspec.json.encode(taken))


if __name__ == "__main__":
    main()
