"""The exceptions of the controller.

Every one says what is wrong, which field said so and what to do about it, so that the command, the web API and a
configuration file's reader report the same mistake in the same words. ``code`` is for programs, the rest for people.
"""

from __future__ import annotations

from graph.fields import Refuse


class ControllerError(Exception):
    """Base of everything that this package raises.

    :param problem: what is wrong, without the field's name
    :param field: where: a request's field (``to``) or a file's path (``instances[3].address``); may be empty
    :param remedy: what to do about it; may be empty
    :param code: a stable word for programs; the class has one of its own
    """

    code = "error"

    def __init__(self, problem: str, *, field: str = "", remedy: str = "", code: str = "") -> None:
        text = f"{field}: {problem}" if field else problem
        super().__init__(f"{text}; {remedy}" if remedy else text)
        self.problem = problem
        self.field = field
        self.remedy = remedy
        if code:
            self.code = code


def refusal(error: type[ControllerError]) -> Refuse:
    """What a reader of fields raises: ``error``, with the field's name as it stands."""
    return lambda name, problem, remedy: error(problem, field=name, remedy=remedy)


class ConfigError(ControllerError):
    """The configuration can not be used."""

    code = "invalid-config"


class InventoryError(ControllerError):
    """The inventory says something that it may not, or can not be read."""

    code = "invalid-inventory"


class StoreError(ControllerError):
    """The database can not be used, or refused a write; nothing of that write is in it."""

    code = "store"


class InvalidRequest(ControllerError):
    """A person or a program asked for something that can not be done as it was asked (HTTP 400)."""

    code = "invalid"


class UnknownWorkload(InvalidRequest):
    """A workload that is not in the inventory. The remedy names the ones that are spelled most like it."""

    code = "unknown-workload"


class NotFound(ControllerError):
    """There is no such thing (HTTP 404)."""

    code = "not-found"


class Conflict(ControllerError):
    """The thing is there, but in a state in which this can not be done to it (HTTP 409)."""

    code = "conflict"


class NotReady(ControllerError):
    """The engine has not started, has stopped, or could not store a change; asking again later may work (HTTP 503)."""

    code = "not-ready"


class IngestError(ControllerError):
    """A flow batch as a whole breaks the protocol; nothing of it was counted and it is not acknowledged."""

    code = "invalid-batch"


class JoinTokenError(ControllerError):
    """A join token does not open the door.

    ``code`` is ``join-token-unknown``, ``join-token-expired``, ``join-token-used`` or ``join-token-orphaned`` (its
    instance has left the inventory). The token itself is in no message.
    """

    code = "join-token-unknown"


class AttestationRefused(ControllerError):
    """A Kubernetes token does not prove which pod shows it, or that pod may have no certificate.

    ``code`` begins with ``attestation-`` and says why; ``docs/attestation.md`` lists all of them. The token is in no
    message.

    :param pod: ``namespace/name`` that the token was found to be bound to; empty when that is not known
    """

    code = "attestation-refused"

    def __init__(self, problem: str, *, code: str, remedy: str = "", field: str = "", pod: str = "") -> None:
        super().__init__(problem, code=code, remedy=remedy, field=field or "service_account_token")
        self.pod = pod


class AttestationUnavailable(ControllerError):
    """Whether a Kubernetes token holds can not be found out now; asking again later may work."""

    code = "attestation-unavailable"
