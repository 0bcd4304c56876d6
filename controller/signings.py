"""How often a pod may have certificates for its token.

A token is good for as long as it lives, and whoever reads it can show it again. Refusing a second use would keep out a
sidecar that died between the signature and its disk, so a few are let through, and each is written down:

1. One token signs at most :data:`KEYS` keys. The same key again is the same request again, whose answer was lost.
2. One pod has at most :data:`BURST` signatures in a row, and one more every :data:`INTERVAL` seconds.

3. Who has a certificate may have the next one as often as it needs to, and not as often as it likes: each signature
   takes our processor, and is an entry in the audit log for ever. :class:`Renewals`.

Nothing here is on disk: after a restart of the controller everybody begins anew, within the life of a token.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from controller.errors import AttestationRefused

KEYS = 3
BURST = 6
INTERVAL = 120.0
#: Renewals of one instance in a row.
RENEWALS = 10
#: Tokens and pods that are remembered; beyond it those not heard of for longest are forgotten.
MOST = 50_000


@dataclass(slots=True)
class _Pod:
    spent: float = 0.0
    at: float = 0.0


@dataclass(slots=True)
class Signings:
    """Counts. All times are seconds since the epoch."""

    _pods: OrderedDict[str, _Pod] = field(default_factory=OrderedDict)
    _tokens: OrderedDict[bytes, set[bytes]] = field(default_factory=OrderedDict)

    def admit(self, pod: str, uid: str, token: bytes, key: bytes, now: float) -> int:
        """Count one signature that is about to be made.

        :param pod: its name, for messages; ``uid`` tells it from others of that name
        :param token: its digest; ``key`` the public key's
        :returns: how many keys the token has signed, this one included
        :raises AttestationRefused: when there is none left; then nothing was counted
        """
        keys = self._tokens.get(token, set())
        if key not in keys and len(keys) >= KEYS:
            raise AttestationRefused(
                f"this token of pod {pod} has signed {KEYS} keys",
                code="attestation-replayed",
                remedy="the kubelet renews the token within 10 minutes; if the sidecar was not restarted so often, "
                "somebody else holds its token: look at the audit log and quarantine the workload",
                pod=pod,
            )
        known = self._pods.get(uid) or _Pod(at=now)
        spent = max(0.0, known.spent - max(0.0, now - known.at) / INTERVAL)
        if spent + 1 > BURST:
            raise AttestationRefused(
                f"pod {pod} had {BURST} certificates in a short time",
                code="attestation-too-often",
                remedy=f"try again in {(spent + 1 - BURST) * INTERVAL:.0f} s; see why it loses its certificate",
                pod=pod,
            )
        self._pods[uid] = _Pod(spent + 1, now)
        self._tokens[token] = keys | {key}
        _bound(self._pods, uid)
        _bound(self._tokens, token)
        return len(self._tokens[token])


class Renewals:
    """How often one instance may have what its certificate entitles it to.

    :param interval: seconds after which it may once more
    :param burst: how many in a row
    """

    def __init__(self, interval: float, burst: int = RENEWALS) -> None:
        self._interval = interval
        self._burst = burst
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()  # how many, and when that was true

    def admit(self, instance: str, now: float) -> float:
        """Count one for an instance (``namespace/name``).

        :return: 0.0; or, when there is none left, the seconds to wait, and nothing was counted
        """
        spent, at = self._spent.get(instance, (0.0, now))
        spent = max(0.0, spent - max(0.0, now - at) / self._interval)
        if spent + 1 > self._burst:
            return (spent + 1 - self._burst) * self._interval
        self._spent[instance] = (spent + 1, now)
        _bound(self._spent, instance)
        return 0.0


class Complaints:
    """Tells which refusals are to be written down: of each pod and reason one in ``interval`` seconds."""

    def __init__(self, interval: float = 600.0) -> None:
        self._interval = interval
        self._written: OrderedDict[tuple[str, str], float] = OrderedDict()

    def is_new(self, pod: str, code: str, now: float) -> bool:
        """Whether it has not been written down lately; it is from here on."""
        last = self._written.get((pod, code))
        if last is not None and 0 <= now - last < self._interval:
            return False
        self._written[pod, code] = now
        _bound(self._written, (pod, code))
        return True


def _bound[K, V](kept: OrderedDict[K, V], key: K) -> None:
    kept.move_to_end(key)
    if len(kept) > MOST:
        kept.popitem(last=False)
