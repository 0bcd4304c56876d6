"""Pods for the tests, and the ways to look into what was made of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from controller.injection import names
from controller.injection.annotations import WEAKENING
from controller.injection.injecting import Injected, Namespace, PodSecurity, Refused, inject
from controller.injection.settings import InjectionSettings, read_injection
from sidecar.settings import Settings

SHOP = Namespace("shop")
RESTRICTED = Namespace("vault", PodSecurity.RESTRICTED)
#: Annotations of a pod without capture.
EXPLICIT = {"capture": "explicit", "explicit-inbound": "8080=18080"}


def settings(**given: Any) -> InjectionSettings:
    """As ``injector.yaml`` would have them."""
    return read_injection(WEAKENING)({"image": "registry.example/hedgerow-sidecar:1.0", **given})


def pod(*containers: Mapping[str, Any], annotations: Mapping[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A pod of the given containers; one plain container without."""
    made: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "cart", "labels": {"app": "cart"}},
        "spec": {"containers": copy.deepcopy(list(containers)) or [{"name": "app", "image": "shop/cart:1"}], **spec},
    }
    if annotations is not None:
        made["metadata"]["annotations"] = {
            name if "/" in name else names.PREFIX + name: value for name, value in annotations.items()
        }
    return made


def user(uid: object) -> dict[str, Any]:
    return {"runAsUser": uid}


def injected(given: Mapping[str, Any], where: Namespace = SHOP, **wanted: Any) -> Injected:
    """The pod with its sidecar; anything else is a failure."""
    outcome = inject(given, where, settings(**wanted))
    assert isinstance(outcome, Injected), outcome
    return outcome


def refused(given: Mapping[str, Any], where: Namespace = SHOP, **wanted: Any) -> str:
    """The refusal's whole text."""
    outcome = inject(given, where, settings(**wanted))
    assert isinstance(outcome, Refused), outcome
    return str(outcome.error)


def named(given: Mapping[str, Any], part: str) -> list[str]:
    return [one["name"] for one in given["spec"].get(part, ())]


def container(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One container, wherever it stands."""
    (found,) = (
        one for part in ("initContainers", "containers") for one in given["spec"].get(part, ()) if one["name"] == name
    )
    return found


def variable(given: Mapping[str, Any], name: str = names.SIDECAR) -> str:
    """The settings as they stand in a container's environment."""
    (value,) = (one["value"] for one in container(given, name)["env"] if one["name"] == names.SETTINGS_VARIABLE)
    return value


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """``$(NAME)`` as Kubernetes expands it, written from the documentation of a container's ``env``."""
    out, at = [], 0
    while at < len(text):
        if text[at] == "$" and at + 1 < len(text):
            if text[at + 1] == "$":
                out.append("$")
                at += 2
                continue
            if text[at + 1] == "(" and (end := text.find(")", at)) > 0:
                name = text[at + 2 : end]
                out.append(variables.get(name, f"$({name})"))
                at = end + 1
                continue
        out.append(text[at])
        at += 1
    return "".join(out)


def document(given: Mapping[str, Any], name: str = names.SIDECAR) -> dict[str, Any]:
    """The settings as the container's process would read them."""
    variables = {"POD_NAME": "cart-7d-x", "POD_NAMESPACE": "shop", "POD_IPS": "10.1.2.3,fd00::3"}
    return json.loads(expanded(variable(given, name), variables))


def accepted(given: Mapping[str, Any], name: str = names.SIDECAR) -> Settings:
    """What the sidecar itself makes of them."""
    text = json.dumps(document(given, name))
    return Settings.from_environment("S", {"S": text})
