"""The exceptions of the sidecar."""

from __future__ import annotations


class SidecarError(Exception):
    """Base of everything that this package raises."""


class Unresolved(SidecarError):
    """The directory did not say who answers at an address; nothing is known, so nothing is allowed."""


class ConfigError(SidecarError):
    """The configuration can not be used; the message names the field and the remedy."""
