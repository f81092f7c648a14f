"""Certificates that a strict client accepts for loopback alone, and keys that Flower takes."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from simulation.runtimes.credentials import ServerCredentials, make_node_key, make_server_credentials


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ServerCredentials:
    return make_server_credentials(tmp_path_factory.mktemp("credentials"))


def shake_hands(server: ServerCredentials, trusted: Path, name: str) -> None:
    """Let a client and a server greet each other in memory."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(server.certificate, server.key)
    theirs = ssl.create_default_context(cafile=str(trusted))
    theirs.verify_flags |= ssl.VERIFY_X509_STRICT
    client = theirs.wrap_bio(to_client, to_server, server_hostname=name)
    greeted = ours.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, greeted, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_strict_client_accepts_the_server(name: str, made: ServerCredentials) -> None:
    shake_hands(made, made.authority, name)


def test_another_name_or_another_authority_is_refused(made: ServerCredentials, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for '192\.0\.2\.1'"):
        shake_hands(made, made.authority, "192.0.2.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        shake_hands(made, make_server_credentials(tmp_path).authority, "127.0.0.1")


def test_a_node_s_key_is_p_384_in_the_format_of_openssh(tmp_path: Path) -> None:
    public = make_node_key(tmp_path / "key")
    private = serialization.load_ssh_private_key((tmp_path / "key").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    loaded = serialization.load_ssh_public_key(public.read_bytes())
    assert private.public_key() == loaded


def test_private_keys_are_for_their_owner_and_the_authority_s_is_nowhere(made: ServerCredentials) -> None:
    folder = made.key.parent
    assert {file.name for file in folder.iterdir()} == {"ca.crt", "server.pem", "server.key"}
    assert stat.S_IMODE(made.key.stat().st_mode) == 0o600
