"""What the source of a mirror tells its target at a peer: so that it can be replaced while nobody can ask it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine import lineage
from engine.errors import InvalidArgument
from engine.mirror_record import MirrorPolicy
from engine.modes import MODES
from engine.names import check_iscsi_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.lineage import LineageEntry

MAX_BYTES = 48 * 1024
MAX_INITIATORS = 256
MAX_PORT_GROUPS = 4095
_ID_MAX = 64


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """``device_id``: what initiators know the disk by. ``port_groups``: target port groups that show it at the source.

    ``initiators``: the only ones that it admits; empty: all. ``chap``: its targets ask for CHAP, whose secrets stay
    there. ``mode``: of the mirror; empty: as it was made.
    """

    volume_id: str
    device_id: str
    lineage: Sequence[LineageEntry]
    may_fail_over: bool = True
    policy: dict[str, Any] = field(default_factory=dict)
    port_groups: tuple[int, ...] = ()
    initiators: tuple[str, ...] = ()
    chap: bool = False
    mode: str = ""

    def serialize(self) -> str:
        return json.dumps(
            {
                "volume_id": self.volume_id,
                "device_id": self.device_id,
                "lineage": lineage.to_json(self.lineage),
                "may_fail_over": self.may_fail_over,
                "policy": self.policy,
                "port_groups": list(self.port_groups),
                "initiators": list(self.initiators),
                "chap": self.chap,
                "mode": self.mode,
            },
            sort_keys=True,
        )

    @classmethod
    def parse(cls, text: str) -> SourceFacts:
        """Raises InvalidArgument."""
        try:
            values = json.loads(text)
            match values:
                case {
                    "volume_id": str(volume_id),
                    "device_id": str(device_id),
                    "may_fail_over": bool(may_fail_over),
                    "policy": dict(policy),
                    "port_groups": list(port_groups),
                    "initiators": list(initiators),
                    "chap": bool(chap),
                } if len(text) <= MAX_BYTES and 0 < len(volume_id) <= _ID_MAX and 0 < len(device_id) <= _ID_MAX:
                    pass
                case _:
                    raise InvalidArgument("facts of a source that are none")
            if len(port_groups) > MAX_PORT_GROUPS or len(initiators) > MAX_INITIATORS:
                raise InvalidArgument("too many facts of a source")
            return cls(
                volume_id,
                device_id,
                lineage.from_json(values.get("lineage")),
                may_fail_over,
                MirrorPolicy.parse(policy).check().serialize(),
                tuple(int(number) for number in port_groups),
                tuple(check_iscsi_name(str(name)) for name in initiators),
                chap,
                _mode_of(values.get("mode", "")),
            )
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"facts of a source that are none: {error}") from None


def _mode_of(value: object) -> str:
    """Raises InvalidArgument."""
    if value not in ("", *MODES):
        raise InvalidArgument("facts of a source that are none: its mode")
    return str(value)
