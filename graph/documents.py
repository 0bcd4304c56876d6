"""Reads the bytes of YAML files that people wrote (settings, inventories) into plain data, strictly.

Only the safe subset: plain values by their look, no tags, no merges. A name may be there once: YAML would take the last
one without a word. Size and depth are bounded before anything is built. What the data mean is for
:mod:`graph.fields`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graph.fields import Unfit
from graph.text import printable

if TYPE_CHECKING:
    import yaml

#: The deepest format of ours has six levels.
MAX_DEPTH = 20

_TEXT = "tag:yaml.org,2002:str"


def read_yaml(data: bytes, at_most: int, if_larger: str) -> object:
    """The one document in ``data``; None when there is none. JSON is YAML, too.

    :param at_most: bytes
    :param if_larger: the remedy when it is larger
    :raises Unfit: when it is not YAML of ours; ``inner`` is the path of a name that is there twice, and a line is named
    """
    import yaml  # here: it takes memory, and a sidecar is there a thousand times

    if len(data) > at_most:
        raise Unfit(f"larger than {at_most} bytes", if_larger)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Unfit(f"not YAML in UTF-8 (byte {error.start})", "save it as UTF-8") from None
    kind: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_events(text, kind)
        loader = kind(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_names(node, "", set())
            loader.deep_construct = True  # refuses what contains itself
            document: object = loader.construct_document(node)
            return document
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark: yaml.Mark | None = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise Unfit(f"not YAML{where}: {printable(problem)[:200]}", "correct the file there") from None
    except ValueError as error:  # what a scalar's own constructor says, such as of a date that is none
        raise Unfit(f"not YAML: {printable(str(error))[:200]}", "put that value in quotes") from None


def _check_events(text: str, kind: type[yaml.SafeLoader]) -> None:
    """Building nested nodes takes stack for each level, and in C nobody counts it; reading the events takes none."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=kind):
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        line = event.start_mark.line + 1 if event.start_mark is not None else 0
        if depth > MAX_DEPTH:
            raise Unfit(f"not YAML of ours: nested more than {MAX_DEPTH} levels deep (line {line})", "nest less")
        if getattr(event, "tag", None) is not None:
            raise Unfit(f"not YAML of ours: a tag (line {line})", "leave out the word that begins with !")


def _check_names(node: yaml.Node, path: str, seen: set[int]) -> None:
    """Refuse names that are there twice or are no text. An alias leads to a node that was seen where it stands."""
    if id(node) in seen or isinstance(node.value, str):
        return
    seen.add(id(node))
    names: set[str] = set()
    for index, entry in enumerate(node.value):
        if not isinstance(entry, tuple):
            _check_names(entry, f"{path}[{index}]", seen)
            continue
        key, value = entry
        line = key.start_mark.line + 1
        if key.tag != _TEXT:
            written = f"{key.value[:60]!r}" if isinstance(key.value, str) else "a list or a mapping"
            raise Unfit(
                f"the name in line {line} is not text but {written}", "write `name: value`, the name in quotes", path
            )
        name = f"{path}.{printable(key.value)[:80]}" if path else printable(key.value)[:80]
        if key.value in names:
            raise Unfit(f"written twice (line {line})", "remove one of them", name)
        names.add(key.value)
        _check_names(value, name, seen)
