"""When to renew a certificate: near half of its life, spread so that a fleet does not ask all at once."""

from __future__ import annotations

from random import Random

#: Renewals fall evenly within this part of the lifetime, around its middle.
JITTER = 0.1


def renewal_at(not_before: float, not_after: float, random: Random) -> float:
    """When a certificate valid from ``not_before`` to ``not_after`` (seconds since the epoch) should be renewed.

    :param random: the source of the jitter
    :returns: a time between 45 % and 55 % of the lifetime
    :raises ValueError: when the lifetime is not positive
    """
    lifetime = not_after - not_before
    if lifetime <= 0:
        raise ValueError("not_after: it must be later than not_before")
    return not_before + lifetime * (0.5 + JITTER * (random.random() - 0.5))
