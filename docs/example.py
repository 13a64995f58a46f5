"""The client library: every virtual machine, and a new one that lives for as long as this takes."""

from mcvirt.errors import Refused
from mcvirt.types.vm import DiskSpec, VmChange, VmSpec
from mcvirt.units import GIB, MIB
from mcvirt_client import Client

# Root on a node needs no login; elsewhere: Client.connect("host1", username="alice", password=..., ca_file=...)
with Client.connect() as client:
    for row in client.vms.list():
        print(row.name, row.state.value, f"{row.memory // MIB} MiB")

    made = client.vms.create(
        VmSpec(name="example", memory=128 * MIB, cpu_count=1, disks=(DiskSpec(size=GIB),), networks=("lan",))
    )
    print("made", made.name, "on", made.node, "with", made.adapters[0].mac)

    try:
        client.vms["example"].update(VmChange(memory=100_000 * GIB))
    except Refused as refused:
        print("refused:", refused)

    client.vms["example"].delete()
