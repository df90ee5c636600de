"""The real clients that tests use, where they are, and what installs them.

One table, read by the ``client`` marker and by ``python -m tests.support.clients``, which ``make test`` runs to say
beforehand what will be skipped and why.
"""

from __future__ import annotations

import functools
import glob
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
"""The folder of shared test material, beside the repository."""

INITIATOR_VM = SHARED / "initiator_vm" / "initiator-vm"
CONFORMANCE = SHARED / "conformance" / "iscsi-conformance"

SYSTEM_PYTHON = "/usr/bin/python3"

Check = Callable[[], str | None]
"""Returns what is missing and how it comes, or None."""


def look_in_sbin() -> None:
    """Find mkfs and the like where Debian keeps them: /sbin is not in the PATH of those who are not root."""
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _program(name: str, package: str) -> Check:
    return lambda: None if shutil.which(name) else f"{name} is not installed (Debian: {package})"


def _file(pattern: str, what: str, package: str) -> Check:
    return lambda: None if glob.glob(pattern) else f"{what} is not installed (Debian: {package})"  # noqa: PTH207


def _system_module(name: str, package: str) -> Check:
    """A module of the Debian package's own interpreter."""

    def check() -> str | None:
        command = [SYSTEM_PYTHON, "-c", f"import {name}"]
        found = (
            Path(SYSTEM_PYTHON).exists() and not subprocess.run(command, capture_output=True, check=False).returncode
        )
        return None if found else f"{name} is not installed (Debian: {package})"

    return check


def _shared(path: Path) -> Check:
    return lambda: None if path.exists() else f"../shared/{path.relative_to(SHARED)} is not beside this repository"


def guest_cache() -> Path:
    """Where the initiator VM's guest image is."""
    cache = os.environ.get("INITIATOR_VM_CACHE")
    return Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "initiator-vm")


def alua_guest_cache() -> Path:
    """Where the image is whose kernel has SCSI device handlers."""
    cache = guest_cache()
    return cache.with_name(cache.name + "-alua")


def _guest_image() -> str | None:
    if (guest_cache() / "image.json").exists():
        return None
    return "the initiator VM's guest image is not built (../shared/initiator_vm/build-guest)"


def _alua_guest_image() -> str | None:
    if (alua_guest_cache() / "image.json").exists():
        return None
    options = f"--kernel linux-image-amd64 --cache-dir {alua_guest_cache()}"
    return f"the guest image with SCSI device handlers is not built (../shared/initiator_vm/build-guest {options})"


def pywbemcli() -> str | None:
    """The program: in the PATH, or where .ci/setup-clients puts it, as it needs an older click than our tests."""
    return shutil.which("pywbemcli") or shutil.which("pywbemcli", path=ROOT / ".venv" / "clients" / "bin")


CLIENTS: dict[str, tuple[Check, ...]] = {
    "qemu-img": (_program("qemu-img", "qemu-utils"),),
    "qemu-iscsi": (
        _program("qemu-img", "qemu-utils"),
        _program("qemu-io", "qemu-utils"),
        _file("/usr/lib/*/qemu/block-iscsi.so", "qemu's iscsi driver", "qemu-block-extra"),
    ),
    "mkfs.ext4": (_program("mkfs.ext4", "e2fsprogs"), _program("e2fsck", "e2fsprogs")),
    "loadgen": (
        _program("gcc", "gcc libc6-dev"),
        _file("/usr/include/stdio.h", "the C library's headers", "libc6-dev"),
    ),
    "iscsi-ls": (_program("iscsi-ls", "libiscsi-bin"),),
    "iscsi-conformance": (_shared(CONFORMANCE), _program("iscsi-test-cu", "libiscsi-bin")),
    "initiator-vm": (
        _shared(INITIATOR_VM),
        _program("qemu-system-x86_64", "qemu-system-x86"),
        _guest_image,
    ),
    "initiator-vm-alua": (
        _shared(INITIATOR_VM),
        _program("qemu-system-x86_64", "qemu-system-x86"),
        _alua_guest_image,
    ),
    "tgtd": (_program("tgtd", "tgt"),),
    "pywbemcli": (lambda: None if pywbemcli() else "pywbemcli is not installed (pip: pywbemtools)",),
    "wbemcli": (_program("wbemcli", "sblim-wbemcli"),),
    "libvhdi": (_program("vhdiinfo", "libvhdi-utils"), _system_module("pyvhdi", "python3-libvhdi")),
}


@functools.cache
def missing(name: str) -> str | None:
    """Why the client cannot be used here, or None. KeyError for a name that no table row has."""
    reasons = [reason for check in CLIENTS[name] if (reason := check())]
    return f"client {name}: {', '.join(reasons)}" if reasons else None


def main() -> int:
    """Print one line per client that is missing; 1 when there is one."""
    look_in_sbin()
    reasons = [reason for name in CLIENTS if (reason := missing(name))]
    for reason in reasons:
        print(f"tests that need it will be skipped: {reason}")
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
