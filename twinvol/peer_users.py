"""What peers ask about this pool's users: whether a password that was said to them is an administrator's here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import PermissionDenied, TimedOut

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from cim_facade.auth import Users


def peer_users(pool: Path) -> Callable[[str, str, str], Awaitable[str | None]]:
    """By a peer's name, a username and a password: the role in the users file of ``pool``, or None.

    A peer is a place, which is locked out after too many wrong ones. Raises PermissionDenied, TimedOut.
    """
    users: Users | None = None

    async def role(peer: str, username: str, password: str) -> str | None:
        nonlocal users
        from cim_facade import auth  # here: few pools are ever asked, and every start would pay for it

        users = users or auth.Users(pool / auth.USERS_NAME)
        try:
            return await users.role(username, password, auth.Login(f"peer {peer}"))
        except auth.LockedOut as error:
            raise PermissionDenied(str(error)) from error
        except auth.Overloaded as error:
            raise TimedOut("too many passwords are being verified") from error

    return role
