"""Listening sockets: bound before anything slow happens, handed to their servers later."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket

from engine.addresses import address_text, parse_address
from engine.errors import EngineError, InUse, InvalidArgument, PermissionDenied

BACKLOG = 256


def listen(address: str) -> socket.socket:
    """A socket listening on HOST:PORT; connections queue until somebody accepts.

    It can be bound again at once after its process was killed (SO_REUSEADDR).

    Raises InUse, PermissionDenied, InvalidArgument (a host that does not resolve or is not this machine's).
    """
    host, port = parse_address(address)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise InvalidArgument(f"cannot listen on {address}: {error.strerror}") from error
    listener = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(target)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _refusal(address, error) from error
    return listener


def bound_address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return address_text(host, port)


def raise_descriptor_limit() -> None:
    """Take all the descriptors that this user may have: each volume, session and worker needs one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _refusal(address: str, error: OSError) -> EngineError:
    if error.errno == errno.EADDRINUSE:
        return InUse(f"{address} is in use by another program; name another address or port 0")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(f"this user may not listen on {address}; ports above 1023 need no privilege")
    return InvalidArgument(f"cannot listen on {address}: {error.strerror}")
