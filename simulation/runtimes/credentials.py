"""Credentials of a deployment on one machine: an authority, a server certificate for loopback, and nodes' keys.

The authority signs one certificate and is forgotten: its private key is never written.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from client.durable import write_new_file

__all__ = ["ServerCredentials", "make_node_key", "make_server_credentials"]

_CURVE: Final = ec.SECP384R1()
_VALID: Final = datetime.timedelta(days=90)
_SLACK: Final = datetime.timedelta(hours=1)  # clocks differ


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCredentials:
    """Files of a server, PEM.

    Attributes:
        authority: the certificate that clients trust.
        certificate: the server's, for 127.0.0.1 and localhost.
        key: the server's private key.
    """

    authority: Path
    certificate: Path
    key: Path


def make_server_credentials(folder: Path) -> ServerCredentials:
    """Write an authority's and a server's certificates into a folder, for the owner only."""
    made = ServerCredentials(authority=folder / "ca.crt", certificate=folder / "server.pem", key=folder / "server.key")
    authority_key, server_key = ec.generate_private_key(_CURVE), ec.generate_private_key(_CURVE)
    authority_name, server_name = _name("florilegium loopback authority"), _name("florilegium loopback server")
    authority = (
        _certificate(authority_name, authority_key.public_key(), authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA384())
    )
    names = [x509.IPAddress(ipaddress.IPv4Address("127.0.0.1")), x509.DNSName("localhost")]
    certificate = (
        _certificate(server_name, server_key.public_key(), authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    write_new_file(made.authority, authority.public_bytes(serialization.Encoding.PEM))
    write_new_file(made.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    write_new_file(made.key, _private(server_key, serialization.PrivateFormat.PKCS8))
    return made


def make_node_key(path: Path) -> Path:
    """Write a node's ECDSA P-384 key in OpenSSH's format, and return the file of its public half."""
    key, public = ec.generate_private_key(_CURVE), path.with_suffix(".pub")
    write_new_file(path, _private(key, serialization.PrivateFormat.OpenSSH))
    write_new_file(
        public, key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    return public


def _certificate(
    name: x509.Name, key: ec.EllipticCurvePublicKey, issuer: x509.Name, issuer_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLACK)
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _private(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
