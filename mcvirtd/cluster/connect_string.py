"""Connect strings: what an operator carries from a blank node to a member of the cluster that it is to join.

A connect string is the base64url form of JSON, with a checksum in front so that a letter that was lost or changed on
the way is told apart from a string that is merely old. It holds where the blank node is, the fingerprint of the key
that it shows in TLS, and a secret. The node keeps only the hash of that. Touches no file and no network.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import secrets

import msgspec

from mcvirt import names
from mcvirt.errors import ConnectStringRefused, McvirtError

VERSION = 1
LIFE = 3600.0
PREFIX = "mcvirt-"
_LONGEST = 4096
_CHECK = 6
_SECRET_BYTES = 32


class ConnectString(msgspec.Struct, frozen=True, kw_only=True):
    """What is in it. *fingerprint* is that of the node's key, *expires* is in seconds since 1970, by its clock."""

    version: int = VERSION
    name: str
    address: str
    port: int
    fingerprint: str
    secret: str
    expires: float


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What the blank node keeps of a connect string."""

    secret_hash: str
    expires: float

    def fits(self, secret: str, now: float) -> bool:
        """Whether *secret* is the one, and still good at *now*."""
        return hmac.compare_digest(_hash(secret), self.secret_hash) and now < self.expires


def make(*, name: str, address: str, port: int, fingerprint: str, now: float) -> tuple[str, Kept]:
    """A new connect string, good for an hour, and what to keep of it."""
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    content = ConnectString(
        name=name, address=address, port=port, fingerprint=fingerprint, secret=secret, expires=now + LIFE
    )
    return encode(content), Kept(secret_hash=_hash(secret), expires=content.expires)


def encode(content: ConnectString) -> str:
    """*content* in the form that people copy."""
    data = msgspec.json.encode(content)
    return PREFIX + base64.urlsafe_b64encode(_checksum(data) + data).decode().rstrip("=")


def decode(text: str) -> ConnectString:
    """What *text* says; raises ConnectStringRefused, with a reason that tells what to do.

    It may have expired: the node that made it knows, by its own clock.
    """
    data = _unwrapped("".join(text.split()))
    try:
        version = msgspec.json.decode(data, type=_Version).version
        if version != VERSION:
            raise _refused(f"it is of version {version}, and this node knows version {VERSION}. Upgrade mcvirt first.")
        found = msgspec.json.decode(data, type=ConnectString)
    except msgspec.MsgspecError:
        raise _refused("what is in it makes no sense. Have a new one made.") from None
    _check(found)
    return found


def refuse_expired(found: ConnectString, now: float) -> None:
    """Raise ConnectStringRefused if *found* has expired by this node's clock: for where the other can't be asked."""
    if now >= found.expires:
        raise _refused(
            f"it has expired. Have a new one made on node '{found.name}', with `mcvirt cluster get-connect-string`."
        )


class _Version(msgspec.Struct, frozen=True):
    version: int


def _unwrapped(text: str) -> bytes:
    if not text:
        raise _refused("it is empty.")
    if not text.startswith(PREFIX):
        raise _refused(f"it does not begin with '{PREFIX}'. Copy all that `mcvirt cluster get-connect-string` printed.")
    if len(text) > _LONGEST:
        raise _refused("it is far too long to be one.")
    body = text[len(PREFIX) :]
    try:
        # b64decode would leave out characters that are not of its alphabet.
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _damaged() from None
    if len(raw) <= _CHECK or base64.urlsafe_b64encode(raw).decode().rstrip("=") != body:
        raise _damaged()
    check, data = raw[:_CHECK], raw[_CHECK:]
    if not hmac.compare_digest(check, _checksum(data)):
        raise _damaged()
    return data


def _check(found: ConnectString) -> None:
    try:
        names.node_name(found.name)
        ipaddress.ip_address(found.address)
        fits = (
            0 < found.port < 65536
            and len(found.fingerprint) == 64
            and all(digit in "0123456789abcdef" for digit in found.fingerprint)
            and 0 < len(found.secret) < 200
        )
    except (McvirtError, ValueError):
        fits = False
    if not fits:
        raise _refused("what is in it makes no sense. Have a new one made.")


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(b"mcvirt connect string" + data).digest()[:_CHECK]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _damaged() -> ConnectStringRefused:
    return _refused("a part of it is missing, or a letter was changed. Copy all of it once more.")


def _refused(reason: str) -> ConnectStringRefused:
    return ConnectStringRefused(reason=reason)
