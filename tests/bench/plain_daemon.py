"""The other end of the yardsticks: a bare Pyro4 daemon with TLS.

`python -m tests.bench.plain_daemon DIRECTORY [nodelay]` writes its CA into DIRECTORY and, once it serves, prints its
URI. Pyro4 leaves Nagle's algorithm on, which costs each new connection 40 ms; *nodelay* turns it off.
"""

from __future__ import annotations

import sys
from pathlib import Path

import Pyro4

from mcvirtd.cluster import pki

CA = "ca.pem"
NAMES = [f"web{number}" for number in range(10)]


@Pyro4.expose
class Plain:
    """What the yardsticks call."""

    def names(self) -> list[str]:
        """As trivial as vm.names."""
        return NAMES


def main() -> None:
    directory = Path(sys.argv[1])
    # The same kind of key and certificate as mcvirtd's, so that TLS costs both the same.
    identity = pki.ensure(directory / "pki", "localhost")
    (directory / CA).write_bytes(identity.trust.read_bytes())
    Pyro4.config.SOCK_NODELAY = "nodelay" in sys.argv[2:]
    Pyro4.config.SSL = True
    Pyro4.config.SSL_SERVERCERT = str(identity.certificate)
    Pyro4.config.SSL_SERVERKEY = str(identity.key)
    with Pyro4.Daemon(host="localhost") as daemon:
        uri = daemon.register(Plain())
        print(uri, flush=True)
        daemon.requestLoop()


if __name__ == "__main__":
    main()
