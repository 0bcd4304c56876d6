"""A mapping that never changes, of which a changed copy is cheap.

Entries lie in buckets at the leaves of a tree two levels deep, by their hash. A copy with k changed entries shares all
but the k buckets concerned, so that publishing a view costs in proportion to what changed and not to the mesh's size.
(The idea is Bagwell's, *Ideal Hash Trees*, 2001, with a fixed depth: 4096 buckets serve some 100,000 entries well.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Self

_BITS = 6
_FAN = 1 << _BITS
_MASK = _FAN - 1


class FrozenMap[K, V](Mapping[K, V]):
    """An immutable mapping. The order of its entries means nothing."""

    __slots__ = ("_root", "_size")

    def __init__(self, entries: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        self._root: tuple[tuple[dict[K, V] | None, ...] | None, ...] = (None,) * _FAN
        self._size = 0
        changed = self.updated(dict(entries))
        self._root, self._size = changed._root, changed._size

    @classmethod
    def _of(cls, root: tuple[tuple[dict[K, V] | None, ...] | None, ...], size: int) -> Self:
        made = cls.__new__(cls)
        made._root, made._size = root, size
        return made

    def updated(self, changes: Mapping[K, V], removed: Iterable[K] = ()) -> Self:
        """A copy in which ``changes`` are set and ``removed`` are absent; a key in both is absent."""
        gone = tuple(removed)
        if not changes and not gone:
            return self
        root: list[tuple[dict[K, V] | None, ...] | None] = list(self._root)
        branches: dict[int, list[dict[K, V] | None]] = {}
        owned: set[int] = set()
        size = self._size

        def bucket(key: K) -> dict[K, V]:
            index = hash(key) & (_FAN * _FAN - 1)
            high, low = index >> _BITS, index & _MASK
            branch = branches.get(high)
            if branch is None:
                branch = branches[high] = list(root[high] or (None,) * _FAN)
            if index not in owned:
                owned.add(index)
                branch[low] = dict(branch[low] or {})
            found = branch[low]
            assert found is not None
            return found

        for key, value in changes.items():
            entries = bucket(key)
            size += key not in entries
            entries[key] = value
        for key in gone:
            if key in changes or key in self:
                entries = bucket(key)
                if key in entries:  # it is not when ``removed`` names it twice
                    del entries[key]
                    size -= 1
        for high, branch in branches.items():
            kept = tuple(entries or None for entries in branch)  # what is empty takes no memory
            root[high] = kept if any(kept) else None
        return self._of(tuple(root), size)

    def __getitem__(self, key: K) -> V:
        index = hash(key)
        branch = self._root[(index >> _BITS) & _MASK]
        entries = branch[index & _MASK] if branch is not None else None
        if entries is None:
            raise KeyError(key)
        return entries[key]

    def __contains__(self, key: object) -> bool:
        index = hash(key)
        branch = self._root[(index >> _BITS) & _MASK]
        entries = branch[index & _MASK] if branch is not None else None
        return entries is not None and key in entries

    def __iter__(self) -> Iterator[K]:
        for branch in self._root:
            for entries in branch or ():
                if entries:
                    yield from entries

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"FrozenMap({dict(self)!r})"
