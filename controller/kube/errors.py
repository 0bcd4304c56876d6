"""What can go wrong between us and an API server, each with who is to blame and whether trying again helps.

Foreign errors (aiohttp's, OpenSSL's, the ``kubernetes`` package's, HTTP statuses) are turned into these once, in
:mod:`controller.kube.client`, and nowhere else. No message holds a token.
"""

from __future__ import annotations

from controller.errors import ControllerError


class KubernetesError(ControllerError):
    """Base of what the API server, or the way to it, makes of a request.

    :param status: the HTTP status; 0 when there was no answer
    :param reason: the ``reason`` of the API server's ``Status`` object, such as ``AlreadyExists``
    """

    code = "kubernetes"
    #: Whether the same request may succeed later without anybody doing anything.
    passing = False

    def __init__(
        self, problem: str, *, status: int = 0, reason: str = "", field: str = "", remedy: str = "", code: str = ""
    ) -> None:
        super().__init__(problem, field=field, remedy=remedy, code=code)
        self.status = status
        self.reason = reason


class Unreachable(KubernetesError):
    """No answer, a late one, or one that says "later" (408, 429, 5xx). What is in force stays; try again."""

    code = "kubernetes-unreachable"
    passing = True

    def __init__(
        self, problem: str, *, status: int = 0, reason: str = "", remedy: str = "", retry_after: float = 0.0
    ) -> None:
        super().__init__(problem, status=status, reason=reason, remedy=remedy)
        self.retry_after = retry_after


class Untrusted(KubernetesError):
    """The API server did not prove that it is the one we are to believe (wrong CA, wrong name, expired)."""

    code = "kubernetes-untrusted"
    passing = True


class Unauthorized(KubernetesError):
    """401: the API server does not know us: the token or the client certificate is wrong or has ended."""

    code = "kubernetes-unauthorized"
    passing = True


class Forbidden(KubernetesError):
    """403: we are known and may not do it. The remedy is the line that is missing in RBAC."""

    code = "kubernetes-forbidden"
    passing = True


class NoSuchObject(KubernetesError):
    """404 for one object."""

    code = "kubernetes-not-found"


class NoSuchResource(KubernetesError):
    """404 for a whole resource: a CRD that is not installed, or a version that this API server does not serve."""

    code = "kubernetes-no-resource"
    passing = True


class Conflicting(KubernetesError):
    """409: somebody else changed or made it, or another field manager owns a field."""

    code = "kubernetes-conflict"


class Expired(KubernetesError):
    """410: the resource version or the list's ``continue`` is too old; list again."""

    code = "kubernetes-expired"
    passing = True


class Refused(KubernetesError):
    """The API server will not take it as it is (400, 413, 415, 422, …): it is wrong, or admission refused it."""

    code = "kubernetes-refused"


class Malformed(KubernetesError):
    """The API server's answer is not what its API promises: no JSON, too large, or of another kind."""

    code = "kubernetes-malformed"
    passing = True
