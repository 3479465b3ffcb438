"""Looks at TLS files before a connection fails on them: a pair, signed, valid now and for a while, named right."""

from __future__ import annotations

import ipaddress
import stat
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from shared.config import TlsConfig
from shared.doctor.finding import Finding

_SOON = timedelta(days=7)
_NEW = "make new ones with `selector-server certs`, or let your CA"


def certificates(tls: TlsConfig | None, *, branch: str, host: str, now: datetime) -> Iterable[Finding]:
    """Findings about one side's files.

    Args:
        tls: The files; None where calls aren't encrypted.
        branch: `server.tls` or `client.tls`.
        host: The name by which trainers call the server, to look for in a server's certificate; empty: don't look.
        now: With a time zone.
    """
    if tls is None:
        return
    try:
        authorities = x509.load_pem_x509_certificates(tls.ca.read_bytes()) if tls.ca else []
        certificate = x509.load_pem_x509_certificate(tls.certificate.read_bytes()) if tls.certificate else None
        key = serialization.load_pem_private_key(tls.key.read_bytes(), None) if tls.key else None
    except OSError as error:
        yield Finding("certificates", "problem", f"{branch}: {error.filename} can't be read: {error.strerror}", _NEW)
        return
    except (ValueError, TypeError) as error:
        yield Finding("certificates", "problem", f"{branch} holds a file that is no plain PEM: {error}", _NEW)
        return
    found: list[Finding] = []
    if tls.ca:
        for authority in authorities:
            found += _validity(authority, f"{branch}.ca {tls.ca}", now)
    if certificate and tls.certificate:
        found += _validity(certificate, f"{branch}.certificate {tls.certificate}", now)
        if key and _public(key.public_key()) != _public(certificate.public_key()):
            what = f"{branch}.key {tls.key} isn't the key of {branch}.certificate {tls.certificate}"
            found.append(Finding("certificates", "problem", what, "give the two files that were made together"))
        if host and not _is_named(certificate, host):
            what = f"{branch}.certificate {tls.certificate} is for {', '.join(_names(certificate))}, not for {host}"
            remedy = f"make one with `selector-server certs --host {host}`, or let trainers call it by a name it has"
            found.append(Finding("certificates", "problem", what, remedy))
        # A server's `ca` signs its clients' certificates, which needn't be the one that signed its own.
        if branch == "client.tls" and authorities and not any(_signed(certificate, by) for by in authorities):
            what = f"{branch}.certificate {tls.certificate} isn't signed by {branch}.ca {tls.ca}"
            found.append(
                Finding("certificates", "warning", what, "make sure that the server's server.tls.ca signed it")
            )
    if tls.key and tls.key.stat().st_mode & (stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH):
        found.append(_open_key(branch, tls.key))
    if not any(finding.level == "problem" for finding in found):
        until = min((each.not_valid_after_utc for each in (*authorities, *([certificate] if certificate else []))),
                    default=None)  # fmt: skip
        found.insert(0, Finding("certificates", "ok", f"{branch}: good until {until:%Y-%m-%d %H:%M} UTC"))
    yield from found


def _validity(certificate: x509.Certificate, name: str, now: datetime) -> Iterator[Finding]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= end:
        yield Finding("certificates", "problem", f"{name} has expired on {end:%Y-%m-%d %H:%M} UTC", _NEW)
    elif now < begin:
        what = f"{name} is valid from {begin:%Y-%m-%d %H:%M} UTC on, here it is {now:%Y-%m-%d %H:%M}"
        yield Finding("certificates", "problem", what, "set this machine's clock, or wait")
    elif end - now < _SOON:
        yield Finding("certificates", "warning", f"{name} expires on {end:%Y-%m-%d %H:%M} UTC", _NEW)


def _open_key(branch: str, key: Path) -> Finding:
    return Finding(
        "certificates", "warning", f"{branch}.key {key} can be read by others of this machine", f"chmod 600 {key}"
    )


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _is_named(certificate: x509.Certificate, host: str) -> bool:
    names = _names(certificate)
    try:
        return str(ipaddress.ip_address(host)) in names
    except ValueError:
        return host.lower() in names or f"*.{host.lower().partition('.')[2]}" in names


def _signed(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _public(key: object) -> bytes:
    return key.public_bytes(  # type: ignore[attr-defined,no-any-return]  # every kind of key has it
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
