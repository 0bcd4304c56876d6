"""What an instance shows for its first certificate: a join token, or the token that Kubernetes made for our pod.

A join token works once and a person has to bring another one, so that whatever is wrong with it ends the sidecar. A
pod's token is made and renewed by the kubelet, as its trust bundle is by the controller: what is wrong there is mended
elsewhere, so it is waited for. No token is in a message or a log, not even half of one.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

from graph.wire import hedgerow_pb2 as pb
from sidecar.errors import ControllerRefused, EnrolmentError
from sidecar.settings import Settings

log = logging.getLogger(__name__)

MAX_TOKEN_BYTES = 4096
#: Of a Kubernetes token: with many audiences and long names it may have a few KiB.
MAX_POD_TOKEN_BYTES = 16 * 1024

_NEW_TOKEN = "have a new join token made (`hedgerow join-token create WORKLOAD INSTANCE`)"  # noqa: S105  # a text
_PROJECTED = (
    "mount a projected volume with serviceAccountToken {audience: hedgerow-controller, path: token} (or the audience "
    "that the controller's token_audience names) and name its file"
)


class Proof(Protocol):
    """One way to prove who we are to somebody who does not know us."""

    #: Whether what is missing or refused may come right without a person at this sidecar.
    patient: bool

    def request(self, csr_der: bytes, reason: str) -> pb.SignRequest:
        """The request for a signature, with what proves us. The files are read anew.

        :param reason: why a certificate is needed, for messages
        :raises EnrolmentError: when there is nothing to show; the message says what to do
        """

    def refused(self, error: ControllerRefused) -> EnrolmentError:
        """What it means that the controller did not take it."""

    def unusable(self, error: Exception) -> EnrolmentError:
        """What it means that the controller took it and its answer can not be used."""

    def spent(self) -> None:
        """A certificate was signed for it."""

    def at_hand(self) -> bool:
        """Whether there is something to show now."""


def proof_of(settings: Settings) -> Proof:
    """What these settings say that we show."""
    if settings.service_account_token_file is not None:
        return PodToken(settings.service_account_token_file, settings.instance)
    return JoinToken(settings.join_token_file)


class JoinToken:
    """Implements :class:`Proof` by a one-time token in a file, which is deleted after use."""

    patient = False

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def request(self, csr_der: bytes, reason: str) -> pb.SignRequest:
        path = self._path
        if path is None:
            raise EnrolmentError(f"{reason} and join_token_file is not set; {_NEW_TOKEN} and name its file there")
        try:
            token = _read(path, MAX_TOKEN_BYTES)
        except FileNotFoundError:
            raise EnrolmentError(
                f"{reason} and join_token_file {path} is not there (a used token is deleted); "
                f"{_NEW_TOKEN} and write it to that file"
            ) from None
        except OSError as error:
            raise EnrolmentError(f"join_token_file: {path}: {error.strerror}; make it readable for this user") from None
        if not token:
            raise EnrolmentError(f"join_token_file: {path} does not hold a join token; {_NEW_TOKEN} and write it there")
        return pb.SignRequest(csr_der=csr_der, join_token=token)

    def refused(self, error: ControllerRefused) -> EnrolmentError:
        return EnrolmentError(
            f"join_token_file: the issuer refused the token ({error}); a token works once and for a limited "
            f"time: {_NEW_TOKEN} and write it to {self._path}"
        )

    def unusable(self, error: Exception) -> EnrolmentError:
        return EnrolmentError(f"the issuer's answer can not be used: {error}; {_NEW_TOKEN}")

    def spent(self) -> None:
        if self._path is None:
            return
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:  # it is spent, so nothing is lost but tidiness
            log.warning("join_token_file: %s is spent and can not be deleted: %s", self._path, error.strerror)

    def at_hand(self) -> bool:
        return self._path is not None and self._path.exists()


class PodToken:
    """Implements :class:`Proof` by a projected ServiceAccount token, which the kubelet replaces from time to time.

    :param instance: the pod's name
    """

    patient = True

    def __init__(self, path: Path, instance: str) -> None:
        self._path = path
        self._instance = instance

    def request(self, csr_der: bytes, reason: str) -> pb.SignRequest:
        where = f"service_account_token_file: {self._path}"
        try:
            token = _read(self._path, MAX_POD_TOKEN_BYTES)
        except FileNotFoundError:
            raise EnrolmentError(f"{reason} and {where} is not there; {_PROJECTED}") from None
        except OSError as error:
            raise EnrolmentError(f"{where}: {error.strerror}; make it readable for this user (`fsGroup`)") from None
        if not token:
            raise EnrolmentError(f"{where} does not hold a token; {_PROJECTED}")
        return pb.SignRequest(csr_der=csr_der, service_account_token=token, instance=self._instance)

    def refused(self, error: ControllerRefused) -> EnrolmentError:
        return EnrolmentError(f"the controller refuses this pod's token: {error}")

    def unusable(self, error: Exception) -> EnrolmentError:
        return EnrolmentError(f"the controller's answer can not be used: {error}")

    def spent(self) -> None:
        pass

    def at_hand(self) -> bool:
        return True


def _read(path: Path, at_most: int) -> str:
    """The token in a file; empty when it holds none."""
    with path.open("rb") as file:
        data = file.read(at_most + 1)
    token = data.strip()
    if len(data) > at_most or not token.isascii() or not token.decode().isprintable():
        return ""
    return token.decode()
