"""pywbem's WBEMListener, and what it has received."""

from __future__ import annotations

import queue
import warnings
from typing import TYPE_CHECKING, Any

import pywbem

from tests.support.ports import free_address

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pywbem import CIMInstance

PATIENCE_S = 60.0


class Listener:
    """On one port, as often as it is started. ``key`` and ``certificate``: over HTTPS."""

    def __init__(self, key: Path | None = None, certificate: Path | None = None) -> None:
        self.port = int(free_address().rpartition(":")[2])
        self._tls = (key, certificate)
        self._received: queue.Queue[CIMInstance] = queue.Queue()
        self._listener: pywbem.WBEMListener | None = None

    @property
    def url(self) -> str:
        return f"{'http' if self._tls[0] is None else 'https'}://127.0.0.1:{self.port}"

    def start(self) -> Listener:
        key, certificate = self._tls
        options: dict[str, Any] = {"http_port": self.port}
        if key is not None:
            options = {"https_port": self.port, "keyfile": str(key), "certfile": str(certificate)}
        self._listener = pywbem.WBEMListener("127.0.0.1", **options)
        self._listener.queue_get_timeout = 0.1
        self._listener.add_callback(lambda indication, _host: self._received.put(indication))
        with warnings.catch_warnings():  # it names its protocol in a way that Python does not like any more
            warnings.filterwarnings("ignore", "ssl.PROTOCOL_TLS is deprecated", DeprecationWarning)
            self._listener.start()
        return self

    def stop(self) -> None:
        if self._listener is not None:
            self._listener.stop()
            self._listener = None

    def __enter__(self) -> Listener:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def next(self, wanted: Callable[[CIMInstance], bool] = lambda _: True) -> CIMInstance:
        """The next indication that is ``wanted``; the others before it are passed over."""
        while True:
            found = self._received.get(timeout=PATIENCE_S)
            if wanted(found):
                return found

    @property
    def waiting(self) -> int:
        """Received, and not taken yet."""
        return self._received.qsize()
