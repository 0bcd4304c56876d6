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
    """Bytes from elsewhere are not a message of ours, or say something that the vocabulary forbids."""
