"""iSCSI URLs as libiscsi and QEMU write them: ``iscsi://host[:port]/target-name/lun``."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from engine.errors import InvalidArgument
from iscsi.target import DEFAULT_PORT, format_address, is_plausible_name
from iscsi.wire.lun import MAX_LUN


@dataclass(frozen=True, slots=True)
class IscsiUrl:
    """A logical unit's place. ``host`` is a name or a numeric address without brackets."""

    host: str
    port: int
    target: str
    lun: int

    @classmethod
    def parse(cls, url: str) -> IscsiUrl:
        """
        Raises:
            InvalidArgument: no such URL, or one with a user name in it (CHAP secrets do not belong into URLs).
        """
        try:
            parts = urlsplit(url)
            port = parts.port or DEFAULT_PORT
        except ValueError as error:
            raise InvalidArgument(f"{url!r}: {error}") from None
        target, _, lun = parts.path.removeprefix("/").rpartition("/")
        target = unquote(target)
        if parts.scheme != "iscsi" or not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
            raise InvalidArgument(f"{url!r} is not of the form iscsi://host[:port]/target-name/lun")
        if (
            not is_plausible_name(target)
            or "/" in target
            or not (lun.isascii() and lun.isdigit())
            or int(lun) > MAX_LUN
        ):
            raise InvalidArgument(f"{url!r} does not end in /target-name/lun")
        return cls(parts.hostname, port, target, int(lun))

    @property
    def portal(self) -> tuple[str, int]:
        return self.host, self.port

    def __str__(self) -> str:
        return f"iscsi://{format_address(self.portal)}/{self.target}/{self.lun}"
