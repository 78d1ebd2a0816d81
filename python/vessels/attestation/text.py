"""Text of others in messages of ours."""

from __future__ import annotations

MOST = 300


def printable(text: object, most: int = MOST) -> str:
    """``text`` on one line, without control characters, and of ``most`` characters.

    What a host or a certificate says goes to terminals and logs; it must not steer them.
    """
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line[:most])
    return line[:most]
