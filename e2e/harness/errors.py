"""What goes wrong before a test has begun: said with the remedy."""

from __future__ import annotations


class HarnessError(Exception):
    """A suite cannot run. It fails then; it never skips.

    :param remedy: what to do about it
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message}\n  {remedy}" if remedy else message)
        self.message = message
        self.remedy = remedy


class CommandFailed(HarnessError):
    """A program that was to succeed did not.

    :ivar code: its exit code
    :ivar stdout: what it wrote
    :ivar stderr: why
    """

    def __init__(self, argv: list[str], code: int, stdout: str, stderr: str) -> None:
        super().__init__(f"{' '.join(argv)} ended with {code}:\n{(stderr or stdout).strip()}")
        self.code = code
        self.stdout = stdout
        self.stderr = stderr


class ApiError(HarnessError):
    """The API server refused a request.

    :ivar status: the HTTP status
    :ivar reason: the ``reason`` of its Status object, as ``Forbidden``
    """

    def __init__(self, method: str, path: str, status: int, reason: str, message: str) -> None:
        super().__init__(f"{method} {path}: {status} {reason}: {message}")
        self.status = status
        self.reason = reason
