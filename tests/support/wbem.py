"""A daemon that serves CIM over HTTPS, and its real clients: pywbem, pywbemcli, sblim's wbemcli."""

from __future__ import annotations

import os
import ssl
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pywbem

from tests.support.clients import pywbemcli
from tests.support.daemon import PROGRAM, ROOT, Daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMESPACE = "root/cimv2/storage/iscsitarget"
USER, PASSWORD = "joe", "correct-horse"
READER, READER_PASSWORD = "ann", "battery-staple"


def clean_environment() -> dict[str, str]:
    """Without what makes requests and curl trust something else (``REQUESTS_CA_BUNDLE`` wins over ``--ca-certs``)."""
    return {name: value for name, value in os.environ.items() if name not in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")}


def add_user(pool: Path, name: str, role: str, password: str) -> None:
    command = [*PROGRAM, "wbem", "user", "add", name, "--role", role, "--password-file", "-", "--pool", str(pool)]
    subprocess.run(command, input=password + "\n", text=True, check=True, capture_output=True, cwd=ROOT)


@dataclass
class Wbem:
    """A daemon with its CIM facade on HTTPS and on loopback HTTP."""

    daemon: Daemon

    @property
    def address(self) -> str:
        return str(self.daemon.ready["wbem"])

    @property
    def plain_address(self) -> str:
        return str(self.daemon.ready["wbem_http"])

    @property
    def certificate(self) -> Path:
        return self.daemon.pool / "tls" / "ca.crt"

    def wait(self) -> None:
        """Until it serves TLS: the certificate is there then."""
        host, port = self.address.split(":")
        ssl.get_server_certificate((host, int(port)), timeout=30)

    def connection(
        self, user: str = USER, password: str = PASSWORD, namespace: str = NAMESPACE
    ) -> pywbem.WBEMConnection:
        return pywbem.WBEMConnection(
            f"https://{self.address}",
            (user, password),
            default_namespace=namespace,
            ca_certs=str(self.certificate),
            timeout=30,
        )

    def pywbemcli(self, *arguments: str, namespace: str = NAMESPACE) -> subprocess.CompletedProcess[str]:
        """One command of pywbemcli over HTTPS."""
        program = pywbemcli()
        assert program is not None
        where = ["-s", f"https://{self.address}", "-u", USER, "-p", PASSWORD, "--ca-certs", str(self.certificate)]
        return _run([program, *where, "-d", namespace, *arguments])

    def wbemcli(self, *arguments: str, on: str = "", namespace: str = NAMESPACE) -> subprocess.CompletedProcess[str]:
        """One command of wbemcli over HTTPS. ``on``: the object of its URL, behind the namespace, with its colon."""
        operation, *rest = arguments
        url = f"https://{USER}:{PASSWORD}@{self.address}/{namespace}{on}"
        return _run(["wbemcli", operation, "-nl", "-cacert", str(self.certificate), url, *rest])


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = clean_environment() | {"PYWBEMCLI_TERMWIDTH": "200", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)


def serving(pool: Path) -> Iterator[Wbem]:
    """For a fixture: a new pool with two users, served."""
    with Daemon.start(pool, "--wbem", "127.0.0.1:0", "--wbem-http", "127.0.0.1:0") as daemon:
        add_user(pool, USER, "admin", PASSWORD)
        add_user(pool, READER, "reader", READER_PASSWORD)
        made = Wbem(daemon)
        made.wait()
        yield made
