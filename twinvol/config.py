"""Pool-wide settings: a small TOML file (``serve --config FILE``), overridden by the command line.

iqn_prefix = "iqn.2026-11.org.twinvol"    # what the names of the pool's own targets begin with
iscsi = ["0.0.0.0:3260", "[::]:3260"]     # "10.0.1.1:3260,2" puts a portal into portal group 2; 1 is the default
api = "127.0.0.1:8080"
wbem = "0.0.0.0:5989"                     # CIM-XML over HTTPS, for users of ``twinvol wbem user add``
wbem_http = "127.0.0.1:5988"              # CIM-XML without TLS or password, for this machine only
peer = "0.0.0.0:3270"                     # where other twinvols connect
workers = 8                               # threads for disk calls
busy_poll_us = 0                          # after serving a socket, look again for so long before sleeping (up to 1000)
chap_algorithms = ["MD5", "SHA-256", "SHA3-256"]   # what CHAP may use; SHA-1 is known too
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.addresses import is_loopback, parse_address
from engine.errors import InvalidArgument
from engine.names import check_iscsi_name
from iscsi.chap import Algorithm
from iscsi.selector import MAX_SPIN_S
from iscsi.target import DEFAULT_PORTAL_GROUP, MAX_PORTAL_GROUP

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_ISCSI = "127.0.0.1:3260"
WORKERS_MAX = 64

ALGORITHMS = {
    "MD5": Algorithm.MD5,
    "SHA-1": Algorithm.SHA1,
    "SHA-256": Algorithm.SHA256,
    "SHA3-256": Algorithm.SHA3_256,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a daemon runs with. Addresses are HOST:PORT, ``[HOST]:PORT`` for IPv6; port 0 picks one.

    ``iscsi``: portals, each with its portal group's tag behind a comma unless that is 1.
    """

    iqn_prefix: str = "iqn.2026-11.org.twinvol"
    iscsi: tuple[str, ...] = (DEFAULT_ISCSI,)
    api: str | None = None
    wbem: str | None = None
    wbem_http: str | None = None
    peer: str | None = None
    workers: int = 8
    busy_poll_us: int = 0
    chap_algorithms: tuple[str, ...] = ("MD5", "SHA-256", "SHA3-256")

    def check(self) -> Settings:
        """Itself. Raises InvalidArgument."""
        check_iscsi_name(self.iqn_prefix)
        for portal in self.iscsi:
            parse_portal(portal)
        for address in (self.api, self.peer, self.wbem):
            if address:
                parse_address(address)
        if self.wbem_http and not is_loopback(parse_address(self.wbem_http)[0]):
            raise InvalidArgument(f"wbem-http {self.wbem_http}: without TLS only a loopback address is served")
        if not 1 <= self.workers <= WORKERS_MAX:
            raise InvalidArgument(f"workers = {self.workers} is not within 1-{WORKERS_MAX}")
        if not 0 <= self.busy_poll_us <= MAX_SPIN_S * 1e6:
            raise InvalidArgument(f"busy_poll_us = {self.busy_poll_us} is not within 0-{MAX_SPIN_S * 1e6:.0f}")
        if not self.chap_algorithms or set(self.chap_algorithms) - ALGORITHMS.keys():
            raise InvalidArgument(f"chap_algorithms are some of {', '.join(ALGORITHMS)}")
        return self

    def algorithms(self) -> frozenset[Algorithm]:
        """``chap_algorithms`` as the target takes them."""
        return frozenset(ALGORITHMS[name] for name in self.chap_algorithms)


def load(path: Path) -> Settings:
    """The settings in a file. Raises InvalidArgument, naming the file and what is wrong."""
    import tomllib  # slow, both; a daemon without a file does without

    from pydantic import TypeAdapter, ValidationError

    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
        unknown = values.keys() - Settings.__slots__
        if unknown:
            raise InvalidArgument(f"{path}: unknown settings {', '.join(sorted(unknown))}")
        return TypeAdapter(Settings).validate_python(values).check()
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument(f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidArgument(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def parse_portal(text: str) -> tuple[str, int]:
    """The address (HOST:PORT) and the portal group tag of ADDRESS or ADDRESS,TAG. Raises InvalidArgument."""
    address, comma, tag = text.partition(",")
    parse_address(address)
    if not comma:
        return address, DEFAULT_PORTAL_GROUP
    if not (tag.isascii() and tag.isdigit()) or int(tag) > MAX_PORTAL_GROUP:
        raise InvalidArgument(f"{text!r}: a portal group tag is a number within 0-{MAX_PORTAL_GROUP}")
    return address, int(tag)
