"""Whom the key behind a connection may speak for; no sockets here."""

from __future__ import annotations


def may_speak(user_id: str, agent: str) -> bool:
    """Whether a connection's key may speak for an agent.

    Args:
        user_id: ``ROLE/NAME/FINGERPRINT``, as the authenticator made it of the key; empty on
            sockets without keys, where only this machine can connect.
        agent: the agent's name.
    """
    role, _, rest = user_id.partition("/")
    return not user_id or role == "service" or (role, rest.rpartition("/")[0]) == ("agent", agent)
