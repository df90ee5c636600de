"""iSCSI URLs as libiscsi and QEMU write them: ``iscsi://[user[%secret]@]host[:port]/target-name/lun``.

A secret in a URL ends up in shell histories and lists of processes: it is understood, and never shown again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from engine.errors import InvalidArgument
from iscsi.target import DEFAULT_PORT, format_address, is_plausible_name
from iscsi.wire.lun import MAX_LUN


@dataclass(frozen=True, slots=True)
class IscsiUrl:
    """A logical unit's place. ``host`` is a name or a numeric address without brackets; ``user`` is a CHAP user."""

    host: str
    port: int
    target: str
    lun: int
    user: str | None = None
    secret: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> IscsiUrl:
        """
        Raises:
            InvalidArgument: no such URL.
        """
        shown = _without_secret(url)
        try:
            parts = urlsplit(url)
            port = parts.port or DEFAULT_PORT
        except ValueError:  # its text quotes the URL
            raise InvalidArgument(f"{shown!r} is no URL: its address or port is wrong") from None
        user, percent, secret = (parts.username or "").partition("%")
        target, _, lun = parts.path.removeprefix("/").rpartition("/")
        target = unquote(target)
        if parts.scheme != "iscsi" or not parts.hostname or parts.query or parts.fragment:
            raise InvalidArgument(f"{shown!r} is not of the form iscsi://[user@]host[:port]/target-name/lun")
        if "@" in parts.netloc and (not user or parts.password is not None or bool(percent) != bool(secret)):
            raise InvalidArgument(f"{shown!r}: before the @ comes a user, or user%secret")
        if (
            not is_plausible_name(target)
            or "/" in target
            or not (lun.isascii() and lun.isdigit())
            or int(lun) > MAX_LUN
        ):
            raise InvalidArgument(f"{shown!r} does not end in /target-name/lun")
        return cls(parts.hostname, port, target, int(lun), user or None, secret or None)

    @property
    def portal(self) -> tuple[str, int]:
        return self.host, self.port

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user is not None else ""
        return f"iscsi://{user}{format_address(self.portal)}/{self.target}/{self.lun}"


def _without_secret(url: str) -> str:
    """For an error's text: what stands before the last @ may be a secret, however ill-formed the URL is."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://...@{rest.rpartition('@')[2]}" if "@" in rest else url
