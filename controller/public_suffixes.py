"""Below which domains anybody has names: what may not be opened as a whole.

The Public Suffix List says it (https://publicsuffix.org/list/): registries (``co.uk``) and providers that give names to
whoever asks (``github.io``). It comes with the package ``publicsuffixlist`` and is as old as that is. The governing
rules:

1. A domain is shared when it is on the list, **or when something below it is**: ``*.azure.com`` would open the names of
   everybody at ``westeurope.cloudapp.azure.com`` too.
2. Providers that never had themselves put on the list stand in :data:`MORE`. It only ever adds.
3. Nothing is read before the first such domain is asked for, and then once.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from publicsuffixlist import PSLFILE, PublicSuffixList

from graph.model import WorkloadRef
from graph.outside import normal_host

#: Of those that everybody knows, what the list has not: buckets, tenants, and names that are made of addresses.
MORE: Final = frozenset(
    {
        "backblazeb2.com",
        "cloudapp.azure.com",
        "firebaseio.com",
        "glitch.me",
        "googleusercontent.com",
        "nip.io",
        "r2.cloudflarestorage.com",
        "sharepoint.com",
        "sslip.io",
        "storage.googleapis.com",
        "wordpress.com",
    }
)


@dataclass(frozen=True, slots=True)
class Shared:
    """Why a domain is anybody's.

    :param domain: itself
    :param suffix: below which anybody has names: the domain, or the shortest of those below it
    """

    domain: str
    suffix: str

    @property
    def problem(self) -> str:
        """For people."""
        if self.suffix == self.domain:
            return f"below {self.domain} anybody has names"
        return f"*.{self.domain} takes in {self.suffix}, below which anybody has names"

    @property
    def remedy(self) -> str:
        """What to write instead."""
        own = f"name your own: *.example.{self.suffix}"
        return own if self.suffix == self.domain else f"name hosts, or the narrower domain that you mean; or {own}"


def shared_domain(ref: WorkloadRef) -> Shared | None:
    """Why the names that an end takes in are anybody's; None where they are not, or an end is no such pattern."""
    if not ref.name.startswith("*."):
        return None
    domain = ref.name.removeprefix("*.")
    known = _known()
    if domain in MORE or known.suffixes.is_public(domain):
        return Shared(domain, domain)
    below = known.above.get(domain)
    return Shared(domain, below) if below else None


@dataclass(frozen=True, slots=True)
class _Known:
    """:param above: of each domain that is not shared itself: the shortest of what is shared below it"""

    suffixes: PublicSuffixList
    above: dict[str, str]


@functools.cache
def _known() -> _Known:
    rules = [_in_ascii(rule) for rule in _written()]
    suffixes = PublicSuffixList(rules, accept_encoded_idn=False)
    above: dict[str, str] = {}
    shared = {rule.removeprefix("*.") for rule in rules if not rule.startswith("!")} | MORE
    for suffix in sorted(shared, key=lambda each: (each.count("."), each)):
        parent = suffix.partition(".")[2]
        while "." in parent:
            if parent not in shared:
                above.setdefault(parent, suffix)
            parent = parent.partition(".")[2]
    return _Known(suffixes, above)


def _written() -> list[str]:
    """The rules of the list as they stand in it; what follows the first space is a comment."""
    lines = Path(PSLFILE).read_text(encoding="utf-8").splitlines()
    return [line.split()[0] for line in lines if line.strip() and not line.startswith("//")]


def _in_ascii(rule: str) -> str:
    """As our names are written."""
    if rule.isascii():
        return rule.lower()
    bare = rule.lstrip("!").removeprefix("*.")
    return rule[: len(rule) - len(bare)] + normal_host(bare)
