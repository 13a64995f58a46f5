"""The node's identity on disk: its certificate authority, its own certificate, and the CAs that it trusts.

    ca.key    the key of this node's CA                        0600, written once, never again
    ca.pem    what is trusted: the CA's certificate first      may be re-made from ca.key, keeping what follows it
    node.key  the node's own key                               0600, written once, never again
    node.crt  the node's certificate, signed by the CA         re-made before it expires and when its names change

They are made in this order, each complete and on the disk before the next, so that whatever a crash leaves behind is
a beginning of the list and is continued. Keys are the only things that could not be made again; anything that is
there and can't be read is refused and left alone.
"""

from __future__ import annotations

import datetime
import fcntl
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mcvirt.errors import BadArgument, StateNotWritable, StateRefused
from mcvirtd.cluster import certificates
from mcvirtd.cluster.certificates import Authority, Subject, certificate_name, fingerprint, key_fingerprint, make_csr

__all__ = [
    "DIRECTORY",
    "Identity",
    "authority_files",
    "certificate_name",
    "ensure",
    "fingerprint",
    "held_key",
    "key_fingerprint",
    "make_csr",
    "node_csr",
    "publish_trust",
    "sign_csr",
    "stage_authority",
    "stage_key",
]

DIRECTORY = "pki"
LARGEST_FILE = 1024 * 1024

_log = logging.getLogger(__name__)


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who this node is. All files exist, belong together, and are good at the time ensure() returned them.

    *key_fingerprint* is what other members' records know this node by.
    """

    directory: Path
    node_name: str
    addresses: tuple[str, ...]
    fingerprint: str
    key_fingerprint: str
    ca_fingerprint: str
    not_after: datetime.datetime

    @property
    def ca_key(self) -> Path:
        """The CA's private key."""
        return self.directory / "ca.key"

    @property
    def trust(self) -> Path:
        """The certificates that a peer's must lead up to."""
        return self.directory / "ca.pem"

    @property
    def key(self) -> Path:
        """The node's private key."""
        return self.directory / "node.key"

    @property
    def certificate(self) -> Path:
        """The node's certificate."""
        return self.directory / "node.crt"


def ensure(
    directory: Path, node_name: str, addresses: Sequence[str] = (), *, now: datetime.datetime | None = None
) -> Identity:
    """The identity kept in *directory*, with whatever was missing or due for renewal made first.

    *addresses* are the IP addresses, besides the local ones, that others reach the node at. Certificates are renewed
    when two thirds of their life have passed; keys stay. Raises StateRefused for a file that is damaged, does not
    fit, or that others may read, and StateNotWritable; both leave the files that are there as they are.
    """
    moment = _moment(now)
    subject = Subject.of(node_name, addresses)
    with _opened(directory):
        ca_key = _key(directory / "ca.key", may_make=not (directory / "ca.pem").exists())
        ca = _authority(directory / "ca.pem", ca_key, moment)
        if not (directory / "node.key").exists():
            # A certificate is worth nothing without its key, and would not fit the new one.
            (directory / "node.crt").unlink(missing_ok=True)
        key = _key(directory / "node.key", may_make=True)
        certificate = _node_certificate(directory / "node.crt", key, subject, ca, moment)
    return Identity(
        directory=directory,
        node_name=node_name,
        addresses=subject.addresses,
        fingerprint=fingerprint(certificate),
        key_fingerprint=key_fingerprint(certificate),
        ca_fingerprint=fingerprint(ca.certificate),
        not_after=certificate.not_valid_after_utc,
    )


def node_csr(identity: Identity) -> bytes:
    """A request, as PEM, that another node's CA can sign for this node's key."""
    return make_csr(_load_key(identity.key), identity.node_name)


def sign_csr(
    identity: Identity,
    csr: bytes,
    node_name: str,
    addresses: Sequence[str] = (),
    *,
    now: datetime.datetime | None = None,
) -> bytes:
    """A node certificate, as PEM, for the key that *csr* proves to hold, signed by this node's CA.

    It names *node_name* and *addresses* and nothing else that the request may ask for. Raises BadArgument for a
    request that is damaged, is for another node, or has another kind of key than P-256.
    """
    key = certificates.requested_key(csr, node_name)
    with _opened(identity.directory):
        ca_key = _load_key(identity.ca_key)
        ca = Authority(_own_ca(_load_certificates(identity.trust), ca_key, identity.trust), ca_key)
    return certificates.pem(certificates.issue(key, Subject.of(node_name, addresses), ca, _moment(now)))


def stage_key(directory: Path, node_name: str) -> bytes:
    """Make a new node key in *directory*, which must be empty or missing; returns a request for its certificate."""
    with _opened(directory):
        key = _key(directory / "node.key", may_make=True)
    return make_csr(key, node_name)


def stage_authority(directory: Path, node_name: str, *, ca_key: bytes, trust: bytes, certificate: bytes) -> None:
    """Complete *directory*, begun by stage_key, with what another cluster's member sent.

    Raises BadArgument if the parts do not belong together.
    """
    what = "certificates for joining"
    try:
        key = serialization.load_pem_private_key(ca_key, password=None)
        authorities = x509.load_pem_x509_certificates(trust)
        signed = x509.load_pem_x509_certificate(certificate)
        fits = (
            authorities[0].public_key() == key.public_key()
            and certificates.sound(signed, authorities[0])
            and signed.public_key() == _load_key(directory / "node.key").public_key()
            and signed.subject == Subject.of(node_name, ()).name()
        )
    except StateRefused:
        raise
    except Exception:  # the parser's errors are many, and the bytes came from the network
        raise BadArgument(what=what, why="they can't be read.") from None
    if not fits:
        raise BadArgument(what=what, why="they do not belong together.")
    with _opened(directory):
        _write(directory / "ca.key", ca_key, mode=0o600, replace=False)
        _write(directory / "ca.pem", trust, mode=0o644)
        _write(directory / "node.crt", certificate, mode=0o644)


def held_key(directory: Path) -> str:
    """The fingerprint of the node key in *directory*; '' if there is none that can be read."""
    try:
        public = _load_key(directory / "node.key").public_key()
    except StateRefused:
        return ""
    return certificates.public_fingerprint(public)


def authority_files(identity: Identity) -> tuple[bytes, bytes]:
    """The key of the CA, and the certificates that are trusted: for a node that becomes a member."""
    return _read(identity.ca_key, secret=True), _read(identity.trust)


def publish_trust(identity: Identity, path: Path, *, and_still: bytes = b"") -> bytes:
    """Copy what this node trusts to *path*, readable by all: users' clients need it, and may not look into ours.

    What is trusted besides, *and_still*, follows it. Returns what this node trusts.
    """
    trusted = _read(identity.trust)
    _write(path, trusted if and_still == trusted else trusted + and_still, mode=0o644)
    return trusted


def _moment(now: datetime.datetime | None) -> datetime.datetime:
    return (now or datetime.datetime.now(datetime.UTC)).replace(microsecond=0)


# --- the four files -----------------------------------------------------------------------------------------------


def _key(path: Path, *, may_make: bool) -> ec.EllipticCurvePrivateKey:
    if path.exists() or path.is_symlink():
        return _load_key(path)
    if not may_make:
        raise _refused(path, "it is gone, although its certificate is here.")
    key = certificates.new_key()
    _write(path, certificates.key_pem(key), mode=0o600, replace=False)
    return key


def _authority(path: Path, key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> Authority:
    others: list[x509.Certificate] = []
    if path.exists():
        others = _load_certificates(path)
        present = _own_ca(others, key, path)
        if not certificates.due(present, now):
            return Authority(present, key)
        others.remove(present)
        _log.info("renewing the certificate of this node's CA")
    ca = certificates.authority(key, now)
    _write(path, b"".join(certificates.pem(each) for each in (ca.certificate, *others)), mode=0o644)
    return ca


def _node_certificate(
    path: Path, key: ec.EllipticCurvePrivateKey, subject: Subject, ca: Authority, now: datetime.datetime
) -> x509.Certificate:
    if path.exists():
        present = _load_certificates(path)[0]
        if certificates.claims(present, ca.certificate) and not certificates.sound(present, ca.certificate):
            raise _refused(path, "its signature is wrong: it is damaged.")
        if present.public_key() != key.public_key():
            raise _refused(path, "it is not for the key in node.key.")
        reason = certificates.outdated(present, subject, ca.certificate, now)
        if not reason:
            return present
        _log.info("making a new certificate for node %s: %s", subject.node_name, reason)
    certificate = certificates.issue(key.public_key(), subject, ca, now)
    _write(path, certificates.pem(certificate), mode=0o644)
    return certificate


# --- reading and writing ------------------------------------------------------------------------------------------


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    text = _read(path, secret=True)
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except (ValueError, TypeError, NotImplementedError):
        raise _refused(path, "it is no private key that can be read.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _refused(path, "its key is not one on the curve P-256.")
    return key


def _load_certificates(path: Path) -> list[x509.Certificate]:
    text = _read(path)
    try:
        found = x509.load_pem_x509_certificates(text)
        for certificate in found:  # these are parsed only when they are asked for
            certificate.public_key(), certificate.subject, certificate.issuer, certificate.extensions
    except Exception:  # the parser raises more than ValueError for some damaged bytes
        raise _refused(path, "it is no certificate that can be read.") from None
    return found


def _own_ca(trusted: list[x509.Certificate], key: ec.EllipticCurvePrivateKey, path: Path) -> x509.Certificate:
    for certificate in trusted:
        if certificate.public_key() == key.public_key():
            if not certificates.sound(certificate, certificate):
                raise _refused(path, "the signature of this node's CA is wrong: it is damaged.")
            return certificate
    raise _refused(path, "it has no certificate for the key in ca.key.")


def _read(path: Path, *, secret: bool = False) -> bytes:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise _refused(path, "it is not a regular file.")
            if secret and state.st_uid != os.geteuid():
                raise _refused(path, f"it belongs to user {state.st_uid}.", "Only mcvirtd may know this key.")
            if secret and state.st_mode & 0o077:
                raise _refused(
                    path,
                    f"others than its owner may read or write it (mode {stat.S_IMODE(state.st_mode):04o}).",
                    f"`chmod 600 {path}` closes it; if somebody may have read it, move its whole directory away.",
                )
            return file.read(LARGEST_FILE)
    except OSError as error:
        raise _refused(path, f"{error.strerror}.") from None


def _write(path: Path, text: bytes, *, mode: int, replace: bool = True) -> None:
    """Put *text* at *path*, whole and on the disk when this returns, or nothing; never over a key."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            fresh.replace(path)
        else:
            path.hardlink_to(fresh)
            fresh.unlink()
        _sync(path.parent)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise StateNotWritable(path=str(path), reason=f"{error.strerror}.") from None


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _opened(directory: Path) -> Iterator[None]:
    """*directory*, there and closed to others, for this process alone while the block runs."""
    try:
        if not directory.is_dir():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync(directory.parent)
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StateNotWritable(path=str(directory), reason=f"{error.strerror}.") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        state = os.fstat(handle)
        if state.st_uid != os.geteuid():
            raise _refused(directory, f"it belongs to user {state.st_uid}.")
        if stat.S_IMODE(state.st_mode) != 0o700:
            os.fchmod(handle, 0o700)
        for name in ("ca.key", "ca.pem", "node.key", "node.crt"):
            (directory / f".{name}.new").unlink(missing_ok=True)
        yield
    except OSError as error:
        raise StateNotWritable(path=str(directory), reason=f"{error.strerror}.") from None
    finally:
        os.close(handle)


def _refused(
    path: Path, reason: str, hint: str = "Restore it from a backup, or move its whole directory away."
) -> StateRefused:
    return StateRefused(path=str(path), reason=reason, hint=hint)
