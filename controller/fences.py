"""The NetworkPolicies that were applied to the namespaces of a cluster, as values: what is in force there by our hand,
what was before it, and which set a person holds on to.

The manifests of a set are kept compressed: they are looked at when somebody goes back to them, and rarely otherwise.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

#: Sets of a namespace that one can go back to, the newest included.
MAX_SETS = 5
#: Of the manifests of one set, uncompressed.
MAX_SET_BYTES = 64 * 1024 * 1024

#: What the detail of an applied set calls the namespace's uid: a name can be given to another namespace later.
NAMESPACE_UID = "namespace_uid"

type Manifest = Mapping[str, Any]


def digest_of(manifests: Iterable[Manifest]) -> str:
    """Of what a set says, whatever the order."""
    texts = sorted(json.dumps([m["metadata"]["name"], m["spec"]], sort_keys=True) for m in manifests)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class AppliedSet:
    """NetworkPolicies of one namespace that were proved and then applied together.

    :param revision: 1, 2, 3 … within the namespace
    :param at: seconds since the epoch
    """

    revision: int
    at: float
    digest: str
    policies: tuple[str, ...]
    packed: bytes

    @classmethod
    def of(cls, revision: int, at: float, manifests: Iterable[Manifest]) -> Self:
        given = sorted(manifests, key=lambda manifest: str(manifest["metadata"]["name"]))
        text = json.dumps(given, sort_keys=True, separators=(",", ":")).encode()
        names = tuple(str(manifest["metadata"]["name"]) for manifest in given)
        return cls(revision, at, digest_of(given), names, zlib.compress(text))

    @property
    def manifests(self) -> list[dict[str, Any]]:
        """:raises ValueError: when it was damaged"""
        unpacking = zlib.decompressobj()
        try:
            text = unpacking.decompress(self.packed, MAX_SET_BYTES)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if not unpacking.eof:
            raise ValueError("it is larger than it can have been")
        manifests = json.loads(text)
        if digest_of(manifests) != self.digest:
            raise ValueError("it is not what was applied")
        return list(manifests)


@dataclass(frozen=True, slots=True)
class Fence:
    """What was applied to one namespace.

    :param sets: the newest last; it is in force there
    :param pinned: the revision that a person went back to, which stays until somebody lets go; None: the newest policy
    :param uid: the namespace's; empty when it was not written down
    """

    sets: tuple[AppliedSet, ...] = ()
    pinned: int | None = None
    pinned_by: str = ""
    reason: str = ""
    uid: str = ""

    @property
    def newest(self) -> AppliedSet | None:
        return self.sets[-1] if self.sets else None

    def found(self, revision: int) -> AppliedSet | None:
        return next((each for each in self.sets if each.revision == revision), None)

    def is_of(self, uid: str, created_at: float) -> bool:
        """Whether it is about this namespace, and not about an earlier one of the same name.

        :param created_at: when the namespace was made, seconds since the epoch
        """
        return self.uid == uid if self.uid else self.newest is None or created_at <= self.newest.at

    def applied(self, manifests: Iterable[Manifest], at: float) -> Fence:
        """After another set came into force; the same one again changes nothing."""
        made = AppliedSet.of(self.sets[-1].revision + 1 if self.sets else 1, at, manifests)
        if self.sets and self.sets[-1].digest == made.digest:
            return self
        kept = [each for each in self.sets if each.revision == self.pinned]
        kept += [each for each in self.sets[-(MAX_SETS - 1) :] if each not in kept]
        return replace(self, sets=(*sorted(kept, key=lambda each: each.revision), made))

    def to_dict(self) -> dict[str, Any]:
        return {
            "sets": [
                {
                    "revision": each.revision,
                    "at": each.at,
                    "digest": each.digest,
                    "policies": list(each.policies),
                    "packed": base64.b64encode(each.packed).decode(),
                }
                for each in self.sets
            ],
            "pinned": self.pinned,
            "pinnedBy": self.pinned_by,
            "reason": self.reason,
            "uid": self.uid,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """:raises ValueError, KeyError, TypeError: when it is not what :meth:`to_dict` gave"""
        sets = tuple(
            AppliedSet(
                int(each["revision"]),
                float(each["at"]),
                str(each["digest"]),
                tuple(each["policies"]),
                base64.b64decode(each["packed"], validate=True),
            )
            for each in document["sets"]
        )
        return cls(sets, document["pinned"], document["pinnedBy"], document["reason"], document.get("uid", ""))
