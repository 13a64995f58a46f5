"""Certificates and requests as values: what is in them, and whether they are still good. Touches no file."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mcvirt.errors import BadArgument

CA_LIFE = datetime.timedelta(days=3653)
NODE_LIFE = datetime.timedelta(days=366)
# Nodes' clocks differ; a certificate made a moment ago must be good for a peer whose clock is behind.
CLOCK_SLACK = datetime.timedelta(hours=1)


class Subject(msgspec.Struct, frozen=True):
    """The node that a certificate speaks for, and the IP addresses, besides the local ones, that it is reached at."""

    node_name: str
    addresses: tuple[str, ...]

    @classmethod
    def of(cls, node_name: str, addresses: Iterable[str]) -> Subject:
        """The same whatever the order of *addresses*, the way they are spelt, and how often each is named."""
        return cls(node_name, tuple(sorted({str(ipaddress.ip_address(address)) for address in addresses})))

    def name(self) -> x509.Name:
        """The subject's name in its certificate."""
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.node_name)])

    def alternatives(self) -> x509.SubjectAlternativeName:
        """All names and addresses that TLS may reach the subject by."""
        hosts = dict.fromkeys((self.node_name, "localhost"))
        ips = dict.fromkeys(ipaddress.ip_address(address) for address in ("127.0.0.1", "::1", *self.addresses))
        return x509.SubjectAlternativeName(
            [*(x509.DNSName(host) for host in hosts), *(x509.IPAddress(address) for address in ips)]
        )


@dataclass(frozen=True)
class Authority:
    """A certificate authority: its certificate and the key to it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new private key, of the only kind that is used here: P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """*key* as unencrypted PEM: for a file that only its owner can read."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def pem(certificate: x509.Certificate) -> bytes:
    """*certificate* as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def authority(key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> Authority:
    """An authority over *key*. It always has the same name, so that what an earlier one of that key signed is good."""
    public = key.public_key()
    label = x509.SubjectKeyIdentifier.from_public_key(public).digest.hex()[:16]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"mcvirt CA {label}")])
    certificate = (
        _begun(name, name, public, now, now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def issue(key: ec.EllipticCurvePublicKey, subject: Subject, by: Authority, now: datetime.datetime) -> x509.Certificate:
    """A certificate of *subject* over *key*, for both ends of a connection; it never outlives its authority's."""
    until = min(now + NODE_LIFE, by.certificate.not_valid_after_utc)
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(by.key.public_key())
    return (
        _begun(subject.name(), by.certificate.subject, key, now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(usages, critical=False)
        .add_extension(subject.alternatives(), critical=False)
        .add_extension(signer, critical=False)
        .sign(by.key, hashes.SHA256())
    )


def due(certificate: x509.Certificate, now: datetime.datetime) -> bool:
    """Whether two thirds of the life of *certificate* are over, or it has not begun."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now < begin or now >= begin + (end - begin) * 2 / 3


def sound(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    """Whether *certificate* carries a right signature of *by*, and so is whole."""
    try:
        certificate.verify_directly_issued_by(by)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def claims(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    """Whether *certificate* says, in one place or another, that *by* issued it."""
    if certificate.issuer == by.subject:
        return True
    try:
        said = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except x509.ExtensionNotFound:
        return False
    return said == x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
        by.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    )


def outdated(certificate: x509.Certificate, subject: Subject, by: x509.Certificate, now: datetime.datetime) -> str:
    """Why *certificate* is to be replaced by a new one that *by* issues to *subject*; '' if it is not."""
    if not claims(certificate, by):
        return "the old one is by another authority"
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "the old one has no names"
    if certificate.subject != subject.name() or names != subject.alternatives():
        return "its names or addresses have changed"
    return "the old one is due for renewal" if due(certificate, now) else ""


def make_csr(key: ec.EllipticCurvePrivateKey, node_name: str) -> bytes:
    """A request, as PEM, for a certificate of *node_name* over *key*."""
    name = Subject.of(node_name, ()).name()
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def requested_key(csr: bytes, node_name: str) -> ec.EllipticCurvePublicKey:
    """The key that *csr* (PEM) asks a certificate of *node_name* for, and proves to hold.

    Raises BadArgument for a request that is damaged, is for another node, or has another kind of key than P-256.
    """
    what = "certificate request"
    try:
        request = x509.load_pem_x509_csr(csr)
        valid = request.is_signature_valid
        key = request.public_key()
        name = request.subject
    except Exception:  # the parser's errors are many, and the bytes came from the network
        raise BadArgument(what=what, why="it can't be read.") from None
    if not valid:
        raise BadArgument(what=what, why="its signature is wrong.")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadArgument(what=what, why="its key is not one on the curve P-256.")
    if name != Subject.of(node_name, ()).name():
        raise BadArgument(what=what, why=f"it is not for node '{node_name}'.")
    return key


def fingerprint(certificate: x509.Certificate | bytes) -> str:
    """The SHA-256 of *certificate* (an object, or its DER bytes) as 64 hex digits."""
    der = certificate if isinstance(certificate, bytes) else certificate.public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()


def key_fingerprint(certificate: x509.Certificate | bytes) -> str:
    """The SHA-256 of the public key in *certificate* (an object, or its DER bytes) as 64 hex digits.

    Nodes know each other by this: it stays when a certificate is renewed, so a member that is away meanwhile still
    knows the renewed one.
    """
    if isinstance(certificate, bytes):
        certificate = x509.load_der_x509_certificate(certificate)
    return public_fingerprint(certificate.public_key())


def public_fingerprint(key: CertificatePublicKeyTypes) -> str:
    """The same of a public key that is in no certificate."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def certificate_name(der: bytes) -> str:
    """The node name that a certificate was made out to; '' if it has none. Whether to trust it, TLS has decided."""
    try:
        names = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError:
        return ""
    return str(names[0].value) if len(names) == 1 else ""


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    until: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
