"""Certificates for one run: an authority of its own, and a name for everybody who takes part.

The authority's private key never leaves the memory of the process that issues, so that nobody can issue later. Who knows
the authority knows all its names: a certificate of any other authority is refused by TLS before a byte is read.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from simcore.errors import InputError, Problem

AUTHORITY = "authority.pem"
NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
SLACK = timedelta(minutes=5)
"""Clocks may differ by that much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who somebody is. `certificate`, `key` and `authority` (the certificate that all trust) are PEM."""

    name: str
    certificate: bytes
    key: bytes = field(repr=False)
    authority: bytes


def issue(
    folder: Path, names: Sequence[str], *, days: int = 7, hosts: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Write authority.pem, and NAME.pem and NAME.key for each of `names`; keys are readable by their owner only.

    `hosts` are further addresses for which a name's certificate is good, for servers that are found by them. Raises
    `InputError` for names that are no host names, or twice the same.
    """
    wrong = [n for n in names if not NAME.fullmatch(n)] + sorted({n for n in names if names.count(n) > 1})
    if wrong:
        raise InputError(
            "nobody can be called that", [Problem("names", repr(n), "different lower-case host names") for n in wrong]
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    own, until = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC) + timedelta(days=days)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "windtunnel run")])
    authority = (
        _builder(subject, subject, own.public_key(), until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(own, hashes.SHA256())
    )
    _write(folder / AUTHORITY, authority.public_bytes(serialization.Encoding.PEM))
    for name in names:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, (hosts or {}).get(name, ()), key, authority, own, until)
        _write(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM))
        _write(folder / f"{name}.key", _private(key))


def load(folder: Path, name: str) -> Identity:
    """What `issue` wrote. Raises `InputError` for missing files, and for a key that others can read."""
    problems = [
        Problem(str(folder / f), "missing", "made by `issue`")
        for f in (AUTHORITY, f"{name}.pem", f"{name}.key")
        if not (folder / f).is_file()
    ]
    key = folder / f"{name}.key"
    if not problems and key.stat().st_mode & 0o077:
        problems = [
            Problem(str(key), f"mode {key.stat().st_mode & 0o777:o}", "600", "chmod 600 it, and make new keys.")
        ]
    if problems:
        raise InputError(f"{name} has no certificate to show", problems)
    return Identity(
        name=name,
        certificate=(folder / f"{name}.pem").read_bytes(),
        key=key.read_bytes(),
        authority=(folder / AUTHORITY).read_bytes(),
    )


def _certificate(
    name: str,
    hosts: Sequence[str],
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    until: datetime,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        _builder(subject, authority.subject, key.public_key(), until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), *(_host(h) for h in hosts)]), critical=False)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
        .sign(signer, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - SLACK)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
