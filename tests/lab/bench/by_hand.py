"""What is made by hand: a replicated machine with the programs that lie under mcvirt, as a script of each node."""

from __future__ import annotations

from tests.lab.cluster import Cluster
from tests.lab.node import Node
from tests.lab.stories import GROUP, POOL

NAME = "byhand"
MINOR, PORT = 900, 7950
MEMORY = 32
DOMAIN = f"""<domain type='qemu'><name>{NAME}</name><memory unit='MiB'>{MEMORY}</memory><vcpu>1</vcpu>
<os><type machine='pc'>hvm</type></os><devices><disk type='block' device='disk'><driver name='qemu' type='raw'/>
<source dev='/dev/drbd{MINOR}'/><target dev='vda' bus='virtio'/></disk></devices></domain>"""


def _resource(nodes: list[Node]) -> str:
    legs = "\n".join(
        f"on {node.name} {{ device minor {MINOR}; disk /dev/{GROUP}/{NAME}; meta-disk /dev/{GROUP}/{NAME}-meta; "
        f"address ipv4 {node.address}:{PORT}; }}"
        for node in nodes
    )
    return f"resource {NAME} {{ net {{ shared-secret abcdefghijkl; }}\n{legs}\n}}\n"


def create(cluster: Cluster, node: Node, size: str) -> str:
    """Two thin volumes, metadata, the device; the first node then calls both sides equal, without a copy."""
    equal = f"drbdadm wait-connect {NAME}\ndrbdadm -- --clear-bitmap new-current-uuid {NAME}\n"
    return (
        f"lvcreate -qq -y -V {size} -T {GROUP}/{POOL} -n {NAME}\n"
        f"lvcreate -qq -y -V 4M -T {GROUP}/{POOL} -n {NAME}-meta\n"
        f"cat > /etc/drbd.d/{NAME}.res <<'END'\n{_resource(cluster.nodes)}END\n"
        f"drbdadm create-md --force {NAME}\ndrbdadm up {NAME}\n{equal if node is cluster[1] else ''}"
    )


# QEMU's own encryption between members of the cluster, with the keys that they have.
KEYS = """
mkdir -p /etc/pki/qemu
install -m 444 /var/lib/mcvirt/pki/ca.pem /etc/pki/qemu/ca-cert.pem
for side in server client; do
    install -m 444 /var/lib/mcvirt/pki/node.crt /etc/pki/qemu/$side-cert.pem
    install -m 400 -o libvirt-qemu /var/lib/mcvirt/pki/node.key /etc/pki/qemu/$side-key.pem
done
"""

REMOVE = f"drbdadm down {NAME}; rm /etc/drbd.d/{NAME}.res; lvremove -qq -f {GROUP}/{NAME} {GROUP}/{NAME}-meta"
