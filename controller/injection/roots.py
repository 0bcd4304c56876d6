"""What an application has to trust when its sidecar reads what it says to hosts outside: mounted, named, taken away.

The sidecar writes the file before the application starts (:mod:`sidecar.inspection_agent`). Rules:

1. The application can read the volume and not write to it. There is no key in it, nor ever was one.
2. A variable that a container sets itself stays as it is, and its author is told.
3. What was added is recorded, and only that is taken away again: somebody may have written the same by hand.
"""

from __future__ import annotations

import copy
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from controller.injection import names
from controller.injection.documents import mappings
from controller.injection.errors import InjectionRefused

#: Everything that the application may trust: the system's roots and ours.
BUNDLE: Final = f"{names.ROOTS_DIRECTORY}/ca-bundle.pem"
#: Ours alone, for those that add it to their own.
OURS: Final = f"{names.ROOTS_DIRECTORY}/inspection-root.pem"
#: Where libraries look: OpenSSL, Go, Ruby; requests; curl; Git; AWS; gRPC; Node.js.
VARIABLES: Final[Mapping[str, str]] = {
    "AWS_CA_BUNDLE": BUNDLE,
    "CURL_CA_BUNDLE": BUNDLE,
    "GIT_SSL_CAINFO": BUNDLE,
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": BUNDLE,
    "NODE_EXTRA_CA_CERTS": OURS,
    "REQUESTS_CA_BUNDLE": BUNDLE,
    "SSL_CERT_FILE": BUNDLE,
}
_FILLED: Final = ("env", "volumeMounts")


@dataclass(slots=True)
class Added:
    """To one container.

    :param env: the variables
    :param empties: what stood in the lists that are filled: an empty one, or nothing
    """

    env: list[str] = field(default_factory=list)
    empties: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As it stands in a record."""
        return {"env": self.env, **({"empties": self.empties} if self.empties else {})}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        """Of a record.

        :raises ValueError: when it is none
        """
        made = cls(list(document["env"]), dict(document.get("empties", {})))
        known = set(made.env) <= VARIABLES.keys() and set(made.empties) <= set(_FILLED)
        if not known or any(value not in ([], None) for value in made.empties.values()):
            raise ValueError("what is never added")
        return made


def give(container: dict[str, Any], where: str, warnings: list[str]) -> Added:
    """Mount the volume, and name what is in it.

    :param where: the path of the container, for messages
    :returns: what :func:`take_away` needs
    :raises InjectionRefused: when something else is mounted there
    """
    name = container["name"]
    for index, mount in enumerate(mappings(container, "volumeMounts", where)):
        if posixpath.normpath(str(mount.get("mountPath"))) == names.ROOTS_DIRECTORY:
            raise InjectionRefused(
                "the application's roots are mounted there",
                field=f"{where}.volumeMounts[{index}].mountPath",
                remedy="mount it elsewhere",
            )
    own = {str(one.get("name")) for one in mappings(container, "env", where)}
    added = Added([variable for variable in VARIABLES if variable not in own])
    added.empties = {
        part: copy.deepcopy(container[part]) for part in _FILLED if part in container and not container[part]
    }
    kept = [variable for variable in VARIABLES if variable in own]
    if kept:
        warnings.append(
            f"container {name} sets {', '.join(kept)} itself: let what it names hold what {BUNDLE} does, "
            "or connections to inspected hosts fail"
        )
    if container.get("envFrom"):
        warnings.append(f"container {name} has envFrom: ours win over {', '.join(VARIABLES)} in it")
    if added.env:
        ours = [{"name": variable, "value": VARIABLES[variable]} for variable in added.env]
        container["env"] = [*(container.get("env") or []), *ours]
    mount = {"mountPath": names.ROOTS_DIRECTORY, "name": names.ROOTS_VOLUME, "readOnly": True}
    container["volumeMounts"] = [*(container.get("volumeMounts") or []), mount]
    return added


def take_away(container: dict[str, Any], added: Added | None) -> None:
    """The inverse of :func:`give`.

    :param added: of the record; None: it knows nothing of this container
    """
    where = "container"
    if "volumeMounts" in container:
        found = mappings(container, "volumeMounts", where)
        kept = [one for one in found if one.get("name") != names.ROOTS_VOLUME]
        if len(kept) < len(found):
            container["volumeMounts"] = kept
            _restore(container, "volumeMounts", added)
    if added is None or "env" not in container:
        return
    found = mappings(container, "env", where)
    kept = list(_without(found, added))
    if len(kept) < len(found):
        container["env"] = kept
        _restore(container, "env", added)


def _without(env: list[dict[str, Any]], added: Added) -> Iterator[dict[str, Any]]:
    for one in env:
        name = one.get("name")
        if name not in added.env or one != {"name": name, "value": VARIABLES[name]}:
            yield one


def _restore(container: dict[str, Any], part: str, added: Added | None) -> None:
    """A list that we have filled, and that is empty again."""
    if container[part]:
        return
    if added is not None and part in added.empties:
        container[part] = copy.deepcopy(added.empties[part])  # in its old place among the keys
    else:
        del container[part]
