"""`selector-server certs`: a development CA with a server's and a client's certificate, for mutual TLS in a minute.

The CA signs these two and no more: its own key is never written, so nobody can sign others with it. Whoever runs the
command again gets a new CA, and hands it to both sides.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.errors import ConfigError

# Clocks of two machines differ.
_BACKDATED = datetime.timedelta(minutes=5)
_MAX_DAYS = 825


def make_certificates(out: Path, hosts: Sequence[str], *, days: int, now: datetime.datetime) -> list[Path]:
    """Write ca.pem, server.pem, server.key, client.pem and client.key; keys can be read by their owner alone.

    Args:
        out: The folder, which is made where it isn't there.
        hosts: Names and addresses by which trainers reach the server; localhost always is one.
        days: How long the certificates are valid.
        now: From when on, with a time zone.

    Raises:
        ConfigError: files of these names are there, the folder can't be written, or hosts or days make no sense.
    """
    if not 1 <= days <= _MAX_DAYS:
        raise ConfigError(f"--days {days} is outside 1 to {_MAX_DAYS}: short lives limit what a lost key can do")
    names = [_general_name(host) for host in dict.fromkeys(["localhost", "127.0.0.1", "::1", *hosts])]
    ca_key = ec.generate_private_key(ec.SECP256R1())
    # Two CAs of one name would be taken for each other, and errors would speak of bad signatures.
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"subbatch development CA {secrets.token_hex(4)}")])
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), days, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    files = {"ca.pem": ca.public_bytes(serialization.Encoding.PEM)}
    for side, usage in (("server", ExtendedKeyUsageOID.SERVER_AUTH), ("client", ExtendedKeyUsageOID.CLIENT_AUTH)):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"subbatch {side}")])
        builder = (
            _builder(subject, ca_name, key.public_key(), days, now)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        )
        if side == "server":
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        files[f"{side}.pem"] = builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        files[f"{side}.key"] = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    return _write(out, files)


def next_steps(out: Path) -> str:
    """What to do with the files, as text for a terminal."""
    return (
        f'On the server:\n  [server]\n  host = "0.0.0.0"\n  token_file = "tokens"  # a line `name:token` for each user;'
        f" `openssl rand -hex 32` makes a token\n"
        f'  tls = {{ ca = "{out}/ca.pem", certificate = "{out}/server.pem", key = "{out}/server.key" }}\n'
        "On the trainers' machines, with copies of ca.pem, client.pem, client.key and a file with their own token:\n"
        '  [client]\n  selector = "HOST:50051"\n  token_file = "token"\n'
        f'  tls = {{ ca = "{out}/ca.pem", certificate = "{out}/client.pem", key = "{out}/client.key" }}\n'
        "The server reads replaced files at the next connection. Delete the folder to be rid of the CA; for production "
        "let your own CA sign."
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int, now: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise ConfigError(f"--host {host!r} is neither a name nor an address: {error}") from None


def _write(out: Path, files: dict[str, bytes]) -> list[Path]:
    """Write files that aren't there, or none.

    Raises:
        ConfigError: one is there already, or can't be written.
    """
    if there := [name for name in files if (out / name).exists()]:
        raise ConfigError(f"{out} holds {', '.join(there)} already: choose another --out, or remove them yourself")
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, content in files.items():
            mode = 0o600 if name.endswith(".key") else 0o644
            descriptor = os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            written.append(out / name)
    except OSError as error:
        raise ConfigError(f"certificates can't be written to {out}: {error.strerror}") from error
    return written
