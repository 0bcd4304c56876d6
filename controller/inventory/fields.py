"""Reads one mapping of a parsed document strictly: known keys, right types, and errors that name the place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping

from controller.errors import InventoryError

#: Kubernetes: "Labels and Selectors", syntax and character set.
_LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII
)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", re.ASCII)


class Fields:
    """One mapping.

    :param path: where it is in the document, such as ``instances[3]``
    :raises InventoryError: when it is no mapping with text keys
    """

    def __init__(self, value: object, path: str) -> None:
        self._path = path
        if not isinstance(value, Mapping):
            shown = "nothing" if value is None else f"a {type(value).__name__}"
            raise InventoryError(
                f"{shown} where a mapping belongs", field=path or "the document", remedy="write key: value"
            )
        for key in value:
            if not isinstance(key, str):
                raise InventoryError(
                    f"the key {key!r:.80} is not text", field=path or "the document", remedy="quote it"
                )
        self._values: Mapping[str, object] = value

    def _at(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def wrong(self, key: str, problem: str, remedy: str) -> InventoryError:
        return InventoryError(problem, field=self._at(key), remedy=remedy)

    def only(self, *known: str) -> None:
        """Refuse every key that is not one of ``known``."""
        for key in self._values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                remedy = f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"
                raise self.wrong(f"{key:.80}", "unknown key", remedy)

    def has(self, key: str) -> bool:
        return key in self._values

    def raw(self, key: str) -> object:
        return self._values[key]

    def text(self, key: str, default: str | None = None) -> str:
        value = self._values.get(key, default)
        if value is None and key not in self._values:
            raise self.wrong(key, "missing", f"add {key}")
        if not isinstance(value, str):
            raise self.wrong(
                key, f"{value!r:.80} is not text", "write text, in quotes where YAML would read it otherwise"
            )
        if not value and default is None:
            raise self.wrong(key, "empty", f"give {key} a value, or leave the entry out")
        return value

    def matching(self, key: str, pattern: re.Pattern[str], wanted: str) -> str:
        """Text of a given form; empty when it is not there."""
        value = self.text(key, "")
        if value and not pattern.fullmatch(value):
            raise self.wrong(key, f"{value!r:.80} can not be used here", f"use {wanted}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, f"{value!r:.80} is neither true nor false", "write true or false")
        return value

    def port(self, key: str) -> int:
        value = self._values.get(key)
        if key not in self._values:
            raise self.wrong(key, "missing", f"add {key}")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
            raise self.wrong(key, f"{value!r:.80} is not a port", "use a whole number from 1 to 65535")
        return value

    def labels(self, key: str) -> tuple[tuple[str, str], ...]:
        """Kubernetes labels, sorted."""
        if key not in self._values:
            return ()
        found = Fields(self._values[key], self._at(key))
        for name, value in found._values.items():
            if not _LABEL_KEY.fullmatch(name):
                raise found.wrong(f"{name:.80}", "not a label key", "use [prefix/]name as in Kubernetes")
            if not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
                raise found.wrong(
                    name, f"{value!r:.80} is not a label value", "quote it; at most 63 letters, digits, -_."
                )
        return tuple(sorted((name, str(value)) for name, value in found._values.items()))

    def entries(self, key: str, *, required: bool = False) -> Iterator[Fields]:
        """The mappings of a list; none when it is not there."""
        value = self._values.get(key)
        if key not in self._values and not required:
            return
        if not isinstance(value, list) or (required and not value):
            problem = "missing" if key not in self._values else "not a list" if not isinstance(value, list) else "empty"
            raise self.wrong(key, problem, "write a list, one entry with '- ' each")
        for index, entry in enumerate(value):
            yield Fields(entry, f"{self._at(key)}[{index}]")
