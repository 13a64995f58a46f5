"""The yardstick of a command: the least that one call of a Pyro4 object over TLS takes, set up as Pyro4 does it."""

import sys

import Pyro4

Pyro4.config.SSL = True
Pyro4.config.SSL_CACERTS = sys.argv[2]
with Pyro4.Proxy(sys.argv[1]) as proxy:
    print(" ".join(proxy.names()))
