"""The exceptions of the shared language."""

from __future__ import annotations


class GraphError(Exception):
    """Base of everything that this package raises."""


class InvalidValue(GraphError, ValueError):
    """A value breaks a rule of the vocabulary.

    :param field: what the value was meant to be, as the user writes it (``rules[3].port``)
    :param problem: what is wrong with it
    :param remedy: what to write instead
    """

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field}: {problem}; {remedy}")
        self.field = field
        self.problem = problem
        self.remedy = remedy


class DecodeError(GraphError, ValueError):
    """Bytes from elsewhere are not a message of ours, or say something that the vocabulary forbids.

    :param problem: what is wrong, never quoting more than a short piece of the input
    :param field: where, as a path from the outermost message (``rules[3].ports[0].first``); empty for the whole
    """

    def __init__(self, problem: str, field: str = "") -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.problem = problem
        self.field = field

    def within(self, outer: str) -> DecodeError:
        """The same error seen from the message that holds the field."""
        joint = "" if not self.field else "." if self.field[0] != "[" else ""
        return DecodeError(self.problem, f"{outer}{joint}{self.field}")
