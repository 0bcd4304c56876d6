"""The exceptions of the sidecar."""

from __future__ import annotations


class SidecarError(Exception):
    """Base of everything that this package raises."""


class Unresolved(SidecarError):
    """The directory did not say who answers at an address; nothing is known, so nothing is allowed."""


class ConfigError(SidecarError):
    """The configuration can not be used; the message names the field and the remedy."""


class CannotListen(ConfigError):
    """An address can not be listened on.

    :param host: with ``port``, the address
    """

    def __init__(self, host: str, port: int, message: str) -> None:
        super().__init__(message)
        self.host = host
        self.port = port


class StateError(SidecarError):
    """A file of the state directory can not be read, trusted or written; the message names it and the remedy."""


class StateBusy(StateError):
    """Another process holds the state directory."""


class EnrolmentError(SidecarError):
    """There is no way to a certificate without a person's help; the message says what they can do."""


class ControllerUnavailable(SidecarError):
    """The controller could not be reached, or could not answer now. Trying again later is right."""


class ControllerRefused(SidecarError):
    """The controller answered no. The same request will be refused again.

    :param invalid: what was sent is malformed to the controller; otherwise it is who we are, or its own state
    """

    def __init__(self, message: str, *, invalid: bool = False) -> None:
        super().__init__(message)
        self.invalid = invalid


class SnapshotRejected(SidecarError):
    """A policy snapshot can not be trusted or does not apply to us; the last good one stays in force."""
