"""How we reach the API server and prove who we are: the pod's ServiceAccount, or a kubeconfig file.

A kubeconfig that does not verify the server, or that sends credentials in clear over a network, is refused: what the
API server says decides who is who in the mesh.
"""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

import yaml

from controller.errors import ConfigError
from controller.kube.library import library
from controller.kube.settings import KubernetesSettings

FIELD = "kubernetes"


async def read_configuration(settings: KubernetesSettings) -> Any:
    """Read afresh whatever says where the API server is and who we are.

    :return: the library's ``Configuration``
    :raises ConfigError: naming the field and the remedy; no message holds a secret
    """
    found = library()
    made = found.configuration()
    try:
        if settings.kubeconfig is None:
            found.load_incluster_config(client_configuration=made)
        else:
            await found.load_kube_config(str(settings.kubeconfig), settings.context or None, made, persist_config=False)
    except (found.wrong, OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise _unusable(settings, error) from None
    _check(made, settings)
    return made


def _unusable(settings: KubernetesSettings, error: Exception) -> ConfigError:
    if settings.kubeconfig is None:
        return ConfigError(
            f"this is no pod with a ServiceAccount: {error}",
            field=FIELD,
            remedy="run it in a pod with automountServiceAccountToken, or set kubernetes.kubeconfig",
        )
    why = str(error) if type(error).__name__ == "ConfigException" else type(error).__name__
    if isinstance(error, OSError):
        why = f"can not be read: {error.strerror}"
    problem = f"{settings.kubeconfig} can not be used: {why}"
    remedy = "try it with `kubectl --kubeconfig FILE get namespaces`"
    return ConfigError(problem, field=f"{FIELD}.kubeconfig", remedy=remedy)


def _check(made: Any, settings: KubernetesSettings) -> None:
    field = f"{FIELD}.kubeconfig" if settings.kubeconfig is not None else FIELD
    host = urlsplit(made.host)
    if host.scheme != "https" and not _is_loopback(host.hostname or ""):
        raise ConfigError(
            f"{made.host} is not HTTPS: whoever is on the way could say who is who in the mesh",
            field=field,
            remedy="use a kubeconfig whose server begins with https://",
        )
    if not made.verify_ssl:
        raise ConfigError(
            "it says insecure-skip-tls-verify: anybody could say who is who in the mesh",
            field=field,
            remedy="set certificate-authority-data in the kubeconfig instead",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
