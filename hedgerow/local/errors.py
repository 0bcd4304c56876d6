"""What can go wrong with a local mesh. Every message names what failed; ``remedy`` says what to do about it."""

from __future__ import annotations


class LocalMeshError(Exception):
    """The base of all errors of the local mesh."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class SandboxUnavailable(LocalMeshError):
    """The kernel, or whoever set up this machine, does not permit the namespaces."""


class CommandFailed(LocalMeshError):
    """A program that had to succeed did not."""


class NotReady(LocalMeshError):
    """Something did not come up, or a condition was not met, in the time it was given."""
