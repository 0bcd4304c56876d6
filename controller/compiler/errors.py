"""The exceptions of the compiler."""

from __future__ import annotations

from controller.errors import ControllerError


class CompileError(ControllerError):
    """The rules or the inventory can not be compiled. Nothing was pushed; the last good policy stays in force."""

    code = "compile"


class ProofFailed(CompileError):
    """What was compiled does not say what the rules say. That is a fault of the compiler, so nothing is pushed."""

    code = "proof-failed"
