"""`Secret`: a string that can be sent but is never shown.

The rule: whoever holds a credential holds it as a `Secret`, and only what writes it to the
wire, to its file, or takes it out of a text reveals it.
"""

from __future__ import annotations


class Secret:
    """A string that never prints itself."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the string, for the one place that sends it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('…')"

    __str__ = __repr__
