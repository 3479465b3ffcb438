"""What to do about a connection that couldn't be set up, from the words of gRPC and its TLS library."""

from __future__ import annotations

_SETTING_UP = "failed to connect to all addresses"
# From the most to the least telling; all words of one entry must be there.
_REMEDIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("CERTIFICATE_VERIFY_FAILED", "expired"), "the server's certificate has expired: replace the files of server.tls"),
    (("CERTIFICATE_VERIFY_FAILED", "not yet valid"), "the server's certificate isn't valid yet: compare the clocks"),
    (
        ("CERTIFICATE_VERIFY_FAILED",),
        "the server's certificate isn't signed by the CA of client.tls.ca: give the ca.pem that belongs to server.tls",
    ),
    (
        ("BAD_SIGNATURE",),
        "client.tls.ca is another CA than the one that signed the server's certificate",
    ),
    (
        ("Hostname Verification",),
        "the server's certificate is for other names than client.selector has: make one with `selector-server certs "
        "--host NAME`, or use a name it has",
    ),
    (("WRONG_VERSION_NUMBER",), "the server doesn't speak TLS: leave client.tls out, or set server.tls"),
    (
        (_SETTING_UP, "Socket closed"),
        "the server ended the connection while it was set up: it wants TLS (set client.tls), or a client certificate "
        "that its CA signed and that hasn't expired (client.tls.certificate and key), as its log says; or it has as "
        "many connections as server.limits.connections allows",
    ),
    (
        ("errors resolving",),
        "the name of client.selector can't be looked up from here: correct it, or the name service",
    ),
    (
        ("Connection refused",),
        "nobody listens there: start the server, or correct client.selector, which must be the server's address as "
        "seen from this machine",
    ),
)


def connection_trouble(details: str) -> str:
    """What gRPC says of a connection, after what to do about it, where its words tell of a cause on either side."""
    for words, remedy in _REMEDIES:
        if all(word in details for word in words):
            return f"{remedy} ({details})"
    return details
