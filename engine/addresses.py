"""Network addresses as people write them: HOST:PORT, ``[HOST]:PORT`` for IPv6."""

from __future__ import annotations

from engine.errors import InvalidArgument


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT or [HOST]:PORT. Raises InvalidArgument."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise InvalidArgument(f"{text!r} is no address; say HOST:PORT, such as 127.0.0.1:3260 or [::1]:3260")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether what listens there is reached from this machine only."""
    import ipaddress  # a daemon without such a question does without

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_text(host: str, port: int) -> str:
    """The opposite of ``parse_address``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
