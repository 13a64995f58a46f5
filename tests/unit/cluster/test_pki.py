from __future__ import annotations

import datetime
import os
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from mcvirt.errors import BadArgument, StateNotWritable, StateRefused
from mcvirtd.cluster import pki, tls
from mcvirtd.cluster.certificates import issue, new_key

FILES = ("ca.key", "ca.pem", "node.key", "node.crt")
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "state" / "pki"


def test_the_first_start_makes_everything_and_the_next_one_nothing(home: Path) -> None:
    made = pki.ensure(home, "n1", ["10.0.0.1"])
    first = content(home)
    assert sorted(first) == sorted(FILES)
    assert mode(home) == 0o700
    assert mode(made.key) == mode(made.ca_key) == 0o600
    assert pki.ensure(home, "n1", ["10.0.0.1"]) == made
    assert content(home) == first


def test_the_certificates_say_what_they_are_for(home: Path) -> None:
    made = pki.ensure(home, "n1", ["10.0.0.1", "2001:db8::1"])
    ca = x509.load_pem_x509_certificate(made.trust.read_bytes())
    node = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    names = node.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["n1", "localhost"]
    found = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    assert found == {"127.0.0.1", "::1", "10.0.0.1", "2001:db8::1"}
    assert pki.fingerprint(node) == made.fingerprint
    der = ssl.PEM_cert_to_DER_cert(made.certificate.read_text())
    assert pki.fingerprint(der) == made.fingerprint
    assert pki.certificate_name(der) == "n1"
    assert pki.certificate_name(b"junk") == ""


def test_the_chain_is_sound_by_the_letter_of_the_standard(home: Path) -> None:
    made = pki.ensure(home, "n1")
    server, client = tls.server_context(made), tls.peer_context(made)
    for context in (server, client):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    assert handshake(server, client) is not None


@pytest.mark.parametrize("crash_after", range(8))
def test_a_crash_anywhere_is_completed_and_no_key_changes(
    home: Path, crash_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    synced = 0
    real = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal synced
        if synced == crash_after:
            raise Crash
        synced += 1
        real(descriptor)

    home.mkdir(parents=True)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(Crash):
        pki.ensure(home, "n1")
    monkeypatch.setattr(os, "fsync", real)
    left = content(home)
    made = pki.ensure(home, "n1")
    after = content(home)
    assert sorted(after) == sorted(FILES)
    for name, text in left.items():
        if name in FILES:
            assert after[name] == text
    tls.server_context(made)


@pytest.mark.parametrize(
    "gone", [("node.crt",), ("node.key",), ("node.key", "node.crt"), ("ca.pem",), ("ca.pem", "node.crt")]
)
def test_what_is_missing_is_made_again_and_fits(home: Path, gone: tuple[str, ...]) -> None:
    before = pki.ensure(home, "n1")
    kept = content(home)
    for name in gone:
        (home / name).unlink()
    after = pki.ensure(home, "n1")
    for key in {"ca.key", "node.key"} - set(gone):
        assert content(home)[key] == kept[key]
    handshake(tls.server_context(after), tls.peer_context(after))
    assert after.node_name == before.node_name


def test_a_lost_ca_key_is_not_made_again_silently(home: Path) -> None:
    made = pki.ensure(home, "n1")
    made.ca_key.unlink()
    before = content(home)
    with pytest.raises(StateRefused) as caught:
        pki.ensure(home, "n1")
    assert "ca.key" in str(caught.value)
    assert content(home) == before


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage", [b"", b"junk", b"\0" * 100, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_damaged_file_is_refused_and_kept(home: Path, name: str, damage: bytes) -> None:
    pki.ensure(home, "n1")
    (home / name).write_bytes(damage)
    before = content(home)
    with pytest.raises(StateRefused) as caught:
        pki.ensure(home, "n1")
    assert str(home / name) in str(caught.value)
    assert content(home) == before


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused_or_harmless_and_the_file_kept(home: Path, name: str) -> None:
    pki.ensure(home, "n1")
    text = bytearray((home / name).read_bytes())
    for at in range(60, len(text) - 40, 37):
        broken = bytearray(text)
        broken[at] ^= 1
        (home / name).write_bytes(broken)
        keys = {key: (home / key).read_bytes() for key in ("ca.key", "node.key")}
        try:
            made = pki.ensure(home, "n1")
        except StateRefused:
            pass
        else:  # a bit that means nothing in PEM
            assert handshake(tls.server_context(made), tls.peer_context(made)) is not None
        assert (home / name).read_bytes() == broken
        assert keys == {key: (home / key).read_bytes() for key in keys}
        (home / name).write_bytes(text)


@pytest.mark.parametrize("name", ["ca.key", "node.key"])
@pytest.mark.parametrize("open_mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_may_read_is_refused(home: Path, name: str, open_mode: int) -> None:
    pki.ensure(home, "n1")
    (home / name).chmod(open_mode)
    with pytest.raises(StateRefused) as caught:
        pki.ensure(home, "n1")
    assert f"{open_mode:04o}" in str(caught.value) and "chmod 600" in str(caught.value)
    assert "PRIVATE" not in str(caught.value)
    assert mode(home / name) == open_mode


def test_a_key_behind_a_link_or_of_another_kind_is_refused(home: Path, tmp_path: Path) -> None:
    made = pki.ensure(home, "n1")
    made.key.rename(tmp_path / "elsewhere")
    made.key.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateRefused):
        pki.ensure(home, "n1")
    made.key.unlink()
    os.mkfifo(made.key)
    with pytest.raises(StateRefused):
        pki.ensure(home, "n1")


def test_a_directory_left_open_is_closed(home: Path) -> None:
    home.mkdir(parents=True, mode=0o755)
    home.chmod(0o755)
    pki.ensure(home, "n1")
    assert mode(home) == 0o700


def test_a_file_in_place_of_the_directory_is_said(home: Path) -> None:
    home.parent.mkdir()
    home.write_text("")
    with pytest.raises(StateNotWritable) as caught:
        pki.ensure(home, "n1")
    assert str(home) in str(caught.value)


def test_new_names_and_addresses_give_a_new_certificate_for_the_same_key(home: Path) -> None:
    first = pki.ensure(home, "n1", ["10.0.0.1", "10.0.0.2"])
    keys = (first.key.read_bytes(), first.ca_key.read_bytes(), first.trust.read_bytes())
    same = pki.ensure(home, "n1", ["10.0.0.2", "10.0.0.1", "10.0.0.1"])
    assert same.fingerprint == first.fingerprint
    second = pki.ensure(home, "n1", ["10.0.0.3"])
    third = pki.ensure(home, "n2", ["10.0.0.3"])
    assert len({first.fingerprint, second.fingerprint, third.fingerprint}) == 3
    assert first.ca_fingerprint == third.ca_fingerprint
    assert keys == (third.key.read_bytes(), third.ca_key.read_bytes(), third.trust.read_bytes())


def test_certificates_are_renewed_when_two_thirds_of_their_life_have_passed(home: Path) -> None:
    day = datetime.timedelta(days=1)
    first = pki.ensure(home, "n1", now=NOW)
    assert first.not_after - NOW == 366 * day
    assert pki.ensure(home, "n1", now=NOW + 243 * day).fingerprint == first.fingerprint
    second = pki.ensure(home, "n1", now=NOW + 245 * day)
    assert second.not_after == NOW + (245 + 366) * day
    assert pki.ensure(home, "n1", now=NOW + 2000 * day).ca_fingerprint == first.ca_fingerprint
    late = pki.ensure(home, "n1", now=NOW + 2600 * day)
    assert late.ca_fingerprint != first.ca_fingerprint
    assert pki.ensure(home, "n1", now=NOW + 2600 * day) == late


def test_a_renewed_ca_goes_on_vouching_for_what_the_old_one_signed(home: Path) -> None:
    first = pki.ensure(home, "n1", now=NOW)
    old_node = first.certificate.read_bytes()
    stranger = pki.ensure(home.parent / "other", "n2")
    first.trust.write_bytes(first.trust.read_bytes() + stranger.trust.read_bytes())
    pki.ensure(home, "n1", now=NOW + datetime.timedelta(days=2600))
    certificates = x509.load_pem_x509_certificates(first.trust.read_bytes())
    assert [pki.fingerprint(each) for each in certificates][1:] == [stranger.ca_fingerprint]
    x509.load_pem_x509_certificate(old_node).verify_directly_issued_by(certificates[0])


def test_a_certificate_of_a_clock_that_was_ahead_is_replaced(home: Path) -> None:
    ahead = pki.ensure(home, "n1", now=NOW + datetime.timedelta(days=400))
    right = pki.ensure(home, "n1", now=NOW)
    assert right.fingerprint != ahead.fingerprint
    handshake(tls.server_context(right), tls.peer_context(right))


def test_two_starts_at_once_agree(home: Path) -> None:
    found: list[pki.Identity] = []
    threads = [threading.Thread(target=lambda: found.append(pki.ensure(home, "n1"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 6 and len({identity.fingerprint for identity in found}) == 1


def test_what_is_trusted_can_be_published_for_users(home: Path, tmp_path: Path) -> None:
    made = pki.ensure(home, "n1")
    public = tmp_path / "ca.pem"
    public.write_text("old")
    pki.publish_trust(made, public)
    assert public.read_bytes() == made.trust.read_bytes()
    assert mode(public) == 0o644


# --- requests -----------------------------------------------------------------------------------------------------


def test_a_signed_request_gives_a_certificate_that_the_cluster_accepts(home: Path, tmp_path: Path) -> None:
    first = pki.ensure(home, "n1")
    joining = pki.ensure(tmp_path / "n2", "n2")
    signed = pki.sign_csr(first, pki.node_csr(joining), "n2", ["10.0.0.2"])
    joining.certificate.write_bytes(signed)
    joining.trust.write_bytes(first.trust.read_bytes())
    shown = handshake(tls.server_context(first), tls.peer_context(joining), name="n1")
    assert shown is not None and pki.certificate_name(shown) == "n2"


def test_a_request_gets_no_other_name_than_was_agreed(home: Path) -> None:
    made = pki.ensure(home, "n1")
    key = new_key()
    with pytest.raises(BadArgument):
        pki.sign_csr(made, pki.make_csr(key, "n1"), "n2")
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "n2")])
    )
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("n1")]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    from cryptography.hazmat.primitives import hashes, serialization

    greedy = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    signed = x509.load_pem_x509_certificate(pki.sign_csr(made, greedy, "n2"))
    names = signed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "n1" not in names.get_values_for_type(x509.DNSName)
    assert not signed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_bad_requests_are_refused(home: Path) -> None:
    from cryptography.hazmat.primitives import hashes, serialization

    made = pki.ensure(home, "n1")
    weak = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "n2")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(weak, hashes.SHA256())
    good = pki.make_csr(new_key(), "n2")
    der = bytearray(x509.load_pem_x509_csr(good).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    try:
        forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    except ValueError:
        forged = b""
    for csr in (b"", b"junk", good[:100], request.public_bytes(serialization.Encoding.PEM), forged):
        with pytest.raises(BadArgument):
            pki.sign_csr(made, csr, "n2")


# --- TLS ----------------------------------------------------------------------------------------------------------


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "localhost") -> bytes | None:
    """Shake hands for real, in memory; the client's certificate as the server sees it. Raises what either raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    waiting = list(ends)
    for _ in range(20):
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
        if not waiting:
            break
    assert not waiting, "the handshake came to no end"
    ends[1].write(b"!")
    assert ends[0].read(1) == b"!"
    assert ends[0].version() == ends[1].version() == "TLSv1.3"
    return ends[1].getpeercert(binary_form=True)


def user_context(trust: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(trust)
    return context


@pytest.mark.parametrize("name", ["localhost", "n1", "127.0.0.1", "::1", "10.0.0.1"])
def test_a_peer_is_known_by_its_certificate_under_each_of_its_names(home: Path, name: str) -> None:
    made = pki.ensure(home, "n1", ["10.0.0.1"])
    shown = handshake(tls.server_context(made), tls.peer_context(made), name)
    assert shown is not None and pki.fingerprint(shown) == made.fingerprint


def test_a_user_needs_no_certificate(home: Path) -> None:
    made = pki.ensure(home, "n1")
    assert handshake(tls.server_context(made), user_context(made.trust)) is None


def test_a_strangers_certificate_is_refused(home: Path, tmp_path: Path) -> None:
    made = pki.ensure(home, "n1")
    stranger = pki.ensure(tmp_path / "other", "n1")
    client = tls.peer_context(stranger)
    client.load_verify_locations(made.trust)
    with pytest.raises((ssl.SSLError, OSError)):
        handshake(tls.server_context(made), client)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tls.server_context(stranger), user_context(made.trust))


def test_another_name_is_refused(home: Path) -> None:
    made = pki.ensure(home, "n1")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tls.server_context(made), tls.peer_context(made), "n2")


def test_an_expired_peer_is_refused(home: Path) -> None:
    made = pki.ensure(home, "n1")
    server = tls.server_context(made)
    ca = pki.Authority(x509.load_pem_x509_certificate(made.trust.read_bytes()), pki._load_key(made.ca_key))
    past = NOW - datetime.timedelta(days=500)
    old = issue(pki._load_key(made.key).public_key(), pki.Subject.of("n1", ()), ca, past)
    made.certificate.write_bytes(pki.certificates.pem(old))
    with pytest.raises((ssl.SSLError, OSError)):
        handshake(server, tls.peer_context(made))


def test_older_tls_is_refused_and_no_ticket_is_given(home: Path) -> None:
    made = pki.ensure(home, "n1")
    server = tls.server_context(made)
    assert server.num_tickets == 0
    old = user_context(made.trust)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, OSError)):
        handshake(server, old)


def test_only_the_clusters_ca_is_trusted(home: Path) -> None:
    made = pki.ensure(home, "n1")
    for context in (tls.server_context(made), tls.peer_context(made)):
        assert len(context.get_ca_certs()) == 1
