"""A small iSCSI initiator on the same wire codecs: ``connect`` to a logical unit, ``discover`` targets.

``login.py`` and ``session.py`` are sans-IO; ``link.py`` is the asyncio shell; ``disk.py`` is what callers use.
"""

from __future__ import annotations

from iscsi.chap import ChapIdentity
from iscsi.initiator.chap import ChapCredentials
from iscsi.initiator.disk import DiscoveredTarget, IscsiDisk, Outcome, connect, discover
from iscsi.initiator.errors import (
    CommandFailed,
    CommandRejected,
    ConnectionLost,
    InitiatorError,
    LoginRefused,
    ShortTransfer,
    TargetNotAuthentic,
)
from iscsi.initiator.url import IscsiUrl
from iscsi.negotiation import Wishes

__all__ = [
    "connect",
    "discover",
    "ChapCredentials",
    "ChapIdentity",
    "DiscoveredTarget",
    "IscsiDisk",
    "IscsiUrl",
    "Outcome",
    "Wishes",
    "InitiatorError",
    "CommandFailed",
    "CommandRejected",
    "ConnectionLost",
    "LoginRefused",
    "ShortTransfer",
    "TargetNotAuthentic",
]
