"""The one exception of injecting."""

from __future__ import annotations

from controller.errors import ControllerError


class InjectionRefused(ControllerError):
    """A pod that can not have a sidecar as it asks for one; its author can mend that."""

    code = "injection-refused"
