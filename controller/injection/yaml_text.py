"""Changes what a YAML document says by changing as little of its text as possible.

People read and compare these files: comments, order and quoting of what is not changed stay as they are. Rules:

1. The result is read again, and has to say exactly what was wanted. Where the text is too unusual for small changes
   (anchors, several values on a line), the whole document is written anew instead; what it says is right in any case.
2. What is put in can be taken out again without a trace: lines in, the same lines out.
3. What we write ourselves is read alike by YAML 1.1 and 1.2: whatever could be taken for something else is in quotes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

#: Levels of nesting. Reading nested nodes takes stack for each level, and in C nobody counts it.
MAX_DEPTH: Final = 100
#: Values in one document, those of aliases counted where they stand.
MAX_VALUES: Final = 500_000

_PLAIN: Final = re.compile(r"[A-Za-z/]([A-Za-z0-9_./:@-]*[A-Za-z0-9_/-])?")
_WORDS: Final = frozenset("y n yes no on off true false null".split())  # noqa: SIM905  # words
_LEFT_OUT: Final = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")


class NotYaml(Exception):
    """The text can not be read; the message says where and why."""


class _Unusual(Exception):
    """No small change is possible here."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # one of two classes, by what is there
    """As Kubernetes reads YAML: no dates, which JSON does not have."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in entries if tag not in _LEFT_OUT]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load(text: str) -> Any:
    """The one document of a text.

    :raises NotYaml: when it is none, or says a name twice
    """
    try:
        _check_depth(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_names(node)
            loader.deep_construct = True
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark: yaml.Mark | None = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise NotYaml(where + " ".join(str(getattr(error, "problem", None) or error).split())[:200]) from None
    except ValueError as error:
        raise NotYaml(" ".join(str(error).split())[:200]) from None


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark is not None else 0
            raise NotYaml(f"line {line}: nested more than {MAX_DEPTH} levels deep")


def _check_names(root: yaml.Node) -> None:
    left, count = [root], 0
    while left:
        node = left.pop()
        count += 1
        if count > MAX_VALUES:
            raise NotYaml(f"more than {MAX_VALUES} values, with those of aliases")
        if isinstance(node, yaml.SequenceNode):
            left += node.value
        elif isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = (
                next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
            )
            if twice is not None:
                raise NotYaml(f"line {node.start_mark.line + 1}: {str(twice)[:80]!r} is written twice")
            left += [value for _, value in node.value]


def edited(text: str, before: Any, after: Any) -> str:
    """The text of a document that says ``before``, changed so that it says ``after``."""
    if before == after:
        return text
    if text.lstrip().startswith("{"):
        return _json(text, after)
    try:
        made = _Edit(text).perform(before, after)
        if _equal(load(made), after):
            return made
    except (_Unusual, NotYaml, yaml.YAMLError):
        pass
    return rewritten(text, after)


def rewritten(text: str, value: Any) -> str:
    """A whole document anew, behind the marker and the comments that ``text`` begins with."""
    head = re.match(r"(?:---[^\n]*\n)?(?:[ \t]*(?:#[^\n]*)?\n)*", text)
    return (head[0] if head else "") + "\n".join(block(value, "")) + "\n"


def _json(text: str, after: Any) -> str:
    indent = re.search(r"\n( +)\S", text)
    separators = (",", ":") if indent is None and '": ' not in text else None
    made = json.dumps(after, indent=len(indent[1]) if indent else None, separators=separators, ensure_ascii=False)
    made = "".join(one if one.isprintable() or one == "\n" or one > "\uffff" else f"\\u{ord(one):04x}" for one in made)
    lead = text[: len(text) - len(text.lstrip())]
    return lead + made + text[len(text.rstrip()) :]


def _equal(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True, default=repr) == json.dumps(other, sort_keys=True, default=repr)


# --- writing


def block(value: Any, indent: str) -> Iterator[str]:
    """The lines of a value in block style."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _entry(f"{indent}{scalar(name)}:", inner, indent)
    elif isinstance(value, list) and value:
        for inner in value:
            first, *rest = block(inner, f"{indent}  ")
            yield f"{indent}- {first.lstrip(' ')}"
            yield from rest
    else:
        yield indent + flow(value)


def _entry(head: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        yield head
        yield from block(value, f"{indent}  ")
    elif isinstance(value, list) and value:
        yield head
        yield from block(value, indent)
    else:
        yield f"{head} {flow(value)}"


def flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(name)}: {flow(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return scalar(value)


def scalar(value: Any) -> str:
    """A single value, in quotes where it could be read as anything else."""
    if isinstance(value, float) and "." not in (written := repr(value)):
        return written.replace("e", ".0e")  # YAML 1.1 takes no number for a float without a point
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS and ": " not in value:
        return value
    if '"' in value and value.isprintable():
        return "'" + value.replace("'", "''") + "'"
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(one if one.isprintable() else f"\\U{ord(one):08x}" for one in quoted)


# --- changing


@dataclass(slots=True)
class _Edit:
    """Changes of one text, by their places in it."""

    text: str
    changes: list[tuple[int, int, str]] = field(default_factory=list)

    def perform(self, before: Any, after: Any) -> str:
        events = list(yaml.parse(self.text, Loader=_Loader))
        if any(getattr(event, "anchor", None) or getattr(event, "tag", None) for event in events):
            raise _Unusual
        node = yaml.compose(self.text, Loader=_Loader)
        if node is None:
            raise _Unusual
        self._change(node, before, after)
        made, at = [], 0
        for start, end, put in sorted(self.changes, key=lambda change: change[0]):
            if start < at:
                raise _Unusual
            made += [self.text[at:start], put]
            at = end
        return "".join([*made, self.text[at:]])

    @property
    def _newline(self) -> str:
        return "\r\n" if "\r\n" in self.text else "\n"

    def _change(self, node: yaml.Node, before: Any, after: Any) -> None:
        if _equal(before, after):
            return
        inside = isinstance(node, yaml.CollectionNode) and not node.flow_style
        if inside and isinstance(before, dict) and isinstance(after, dict) and before and after:
            self._change_mapping(node, before, after)
        elif inside and isinstance(before, list) and isinstance(after, list) and before and after:
            self._change_list(node, before, after)
        elif isinstance(after, dict | list) and after and not (before and _is_flow(node)):
            raise _Unusual  # a value that becomes lines; the mapping around it sees to that
        else:
            self.changes.append((node.start_mark.index, self._end(node), flow(after)))

    def _change_mapping(self, node: yaml.Node, before: dict[str, Any], after: dict[str, Any]) -> None:
        indent = " " * node.start_mark.column
        for key, value in node.value:
            name = key.value
            if name not in after:
                self._remove(key.start_mark.index, self._end(value), r"[ \t]*")
            elif self._becomes_lines(value, before[name], after[name]):
                colon = self.text.index(":", key.end_mark.index)
                lines = list(_entry("", after[name], indent))
                put = ":" + self._newline.join(lines)
                self.changes.append((colon, max(self._end(value), colon + 1), put))
            else:
                self._change(value, before[name], after[name])
        added = {name: value for name, value in after.items() if name not in before}
        if added:
            lines = list(block(added, indent))
            self._insert(self._line_end(self._end(node)), lines)

    @staticmethod
    def _becomes_lines(node: yaml.Node, before: Any, after: Any) -> bool:
        """Whether the value has to be written anew from the colon on: it is no longer, or not yet, a block."""
        was, is_ = (isinstance(value, dict | list) and bool(value) for value in (before, after))
        if was and not is_:
            return not _is_flow(node)
        return is_ and not was

    def _change_list(self, node: yaml.Node, before: list[Any], after: list[Any]) -> None:
        keys, wanted = [_key(one) for one in before], [_key(one) for one in after]
        if len(set(keys)) < len(keys) or len(set(wanted)) < len(wanted):
            raise _Unusual
        if [key for key in keys if key in wanted] != [key for key in wanted if key in keys]:
            raise _Unusual
        indent = self._dash(node.value[0].start_mark.index)
        nodes = dict(zip(keys, node.value, strict=True))
        for key, item, was in zip(keys, node.value, before, strict=True):
            if key in wanted:
                self._change(item, was, after[wanted.index(key)])
            else:
                self._remove(item.start_mark.index, self._end(item), r"[ \t]*- +")
        waiting: list[str] = []
        for key, value in zip(wanted, after, strict=True):
            if key not in nodes:
                waiting += block([value], indent)
            elif waiting:
                self._insert(self._line_end_before(nodes[key].start_mark.index), waiting)
                waiting = []
        if waiting:
            self._insert(self._line_end(self._end(node)), waiting)

    def _dash(self, at: int) -> str:
        """The white space before the dash of an item that begins at ``at``."""
        start = self.text.rfind("\n", 0, at) + 1
        found = re.fullmatch(r"([ \t]*)- +", self.text[start:at])
        if found is None:
            raise _Unusual
        return found[1]

    def _insert(self, at: int, lines: list[str]) -> None:
        self.changes.append((at, at, self._newline + self._newline.join(lines)))

    def _remove(self, start: int, end: int, lead: str) -> None:
        """Take whole lines out, with the line break before them."""
        line = self.text.rfind("\n", 0, start) + 1
        if not line or not re.fullmatch(lead, self.text[line:start]):
            raise _Unusual
        self.changes.append((self._line_end_before(start), self._line_end(end), ""))

    def _line_end_before(self, at: int) -> int:
        end = self.text.rfind("\n", 0, at)
        if end < 0:
            raise _Unusual
        return end - 1 if self.text[end - 1 : end] == "\r" else end

    def _line_end(self, at: int) -> int:
        end = self.text.find("\n", at)
        end = len(self.text) if end < 0 else end
        return end - 1 if self.text[end - 1 : end] == "\r" else end

    def _end(self, node: yaml.Node) -> int:
        """Where a node's text ends; a parser says where the next one begins."""
        if isinstance(node, yaml.ScalarNode):
            end = node.end_mark.index
            return len(self.text[:end].rstrip()) if node.style in ("|", ">") else end
        if _is_flow(node) or not node.value:
            return int(node.end_mark.index)
        last = node.value[-1]
        return self._end(last[1] if isinstance(last, tuple) else last)


def _is_flow(node: yaml.Node) -> bool:
    return isinstance(node, yaml.CollectionNode) and bool(node.flow_style)


def _key(entry: Any) -> str:
    name = entry.get("name") if isinstance(entry, dict) else None
    return f"name {name}" if isinstance(name, str) else json.dumps(entry, sort_keys=True, default=repr)
