"""TLS between nodes, and towards users: 1.3 only, and trust in the cluster's own CA alone."""

from __future__ import annotations

import errno
import hmac
import ssl

from mcvirt.errors import StateRefused
from mcvirtd.cluster.pki import Identity, key_fingerprint


def server_context(identity: Identity) -> ssl.SSLContext:
    """For the listening side: a client may show a certificate, and is refused if it leads up to no CA of ours.

    Who shows none is a user, who has to log in. There are no session tickets: each connection proves itself anew.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _prepare(context, identity)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0
    return context


def peer_context(identity: Identity) -> ssl.SSLContext:
    """For connecting to another node as this one: shows our certificate, checks theirs and the name in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _prepare(context, identity)
    return context


def _prepare(context: ssl.SSLContext, identity: Identity) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    try:
        context.load_cert_chain(identity.certificate, identity.key)
        context.load_verify_locations(cafile=identity.trust)
    except (OSError, ssl.SSLError) as error:
        raise StateRefused(
            path=str(identity.directory),
            reason=f"{error.strerror or error.args[0]}.",
            hint="Restart mcvirtd to have the files looked at one by one.",
        ) from None


def pinned_context(fingerprint: str) -> ssl.SSLContext:
    """For connecting to a node of which nothing is known but the *fingerprint* of its key.

    Nothing is sent, and no handshake comes to its end, before the key was seen to be that one.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    class Pinned(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            shown = self.getpeercert(binary_form=True)
            if shown is None or not hmac.compare_digest(key_fingerprint(shown), fingerprint):
                self.close()
                text = "the node that answered there is not the one that was meant"
                raise ConnectionAbortedError(errno.ECONNABORTED, text)

    context.sslsocket_class = Pinned
    return context
