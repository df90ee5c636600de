"""``twinvol`` and ``python -m twinvol``."""

from __future__ import annotations


def main() -> None:
    from twinvol.cli import cli

    cli(prog_name="twinvol")


if __name__ == "__main__":
    main()
