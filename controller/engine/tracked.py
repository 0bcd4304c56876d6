"""A dictionary that remembers which keys were touched since it was last published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from controller.frozen_map import FrozenMap


class Tracked[K, V](Mapping[K, V]):
    """The engine's working copy of one mapping of the view."""

    def __init__(self, entries: Mapping[K, V] | None = None) -> None:
        self._entries: dict[K, V] = dict(entries or {})
        self.touched: set[K] = set(self._entries)

    def put(self, key: K, value: V) -> None:
        self._entries[key] = value
        self.touched.add(key)

    def drop(self, key: K) -> V | None:
        if key not in self._entries:
            return None
        self.touched.add(key)
        return self._entries.pop(key)

    def published(self, before: FrozenMap[K, V]) -> FrozenMap[K, V]:
        """``before`` with everything touched brought up to date; forgets what was touched."""
        if not self.touched:
            return before
        changes = {key: self._entries[key] for key in self.touched if key in self._entries}
        after = before.updated(changes, [key for key in self.touched if key not in changes])
        self.touched = set()
        return after

    def __getitem__(self, key: K) -> V:
        return self._entries[key]

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
