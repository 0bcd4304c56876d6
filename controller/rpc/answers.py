"""What the directory answers, made once for all who ask.

When the inventory changes, every sidecar's stream looks at all of its addresses again. A service of a thousand
endpoints is looked up, compared and written once then, and not once for each of a thousand sidecars, whose streams hold
one answer between them.

Kept are only answers with several endpoints, to addresses in their one spelling: of those there are no more than ports
of services, whatever is asked for. All others are made as fast as they are found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from controller.inventory import Inventory
from controller.inventory.model import plain_address
from graph.directory import Destination
from graph.model import Protocol
from graph.wire import hedgerow_pb2 as pb
from graph.wire.codec import destination_to_message

type Target = tuple[str, int, Protocol]
"""What is asked for: address, port and protocol."""

#: Endpoints from which on an answer is kept.
SEVERAL: Final = 2


class Answers:
    """
    :param inventory: gives the one in force
    """

    def __init__(self, inventory: Callable[[], Inventory]) -> None:
        self._inventory = inventory
        self._of: Inventory | None = None  # whose answers these are
        self._kept: dict[Target, Destination] = {}
        self._before: dict[Target, Destination] = {}
        self._messages: dict[Target, tuple[Destination, pb.Destination]] = {}

    def of(self, target: Target) -> Destination:
        """Who answers at ``target``. One that says the same as before a change of the inventory is the same object, and
        has the version in which it was first so.

        :raises InvalidValue: when it is no address, or no port
        """
        inventory = self._inventory()
        if inventory is not self._of:
            self._of = inventory
            self._before, self._kept = self._kept, {}
            self._messages = {key: kept for key, kept in self._messages.items() if key in self._before}
        kept = self._kept.get(target)
        if kept is not None:
            return kept
        answer = inventory.resolve(*target)
        if len(answer.endpoints) < SEVERAL or plain_address(target[0]) != target[0]:
            return answer
        before = self._before.get(target)
        if before is not None and same(before, answer):
            answer = before
        self._kept[target] = answer
        return answer

    def message(self, target: Target, answer: Destination) -> pb.Destination:
        """``answer`` as it is written. Nobody changes it: it may be everybody's.

        :raises InvalidValue: when a value does not fit its field
        """
        if self._kept.get(target) is not answer:
            return destination_to_message(answer)
        written = self._messages.get(target)
        if written is None or written[0] is not answer:
            written = self._messages[target] = (answer, destination_to_message(answer))
        return written[1]


def same(told: Destination | None, answer: Destination) -> bool:
    """Whether an answer says what was told, whichever version of the inventory it is from."""
    return told is answer or (told is not None and replace(told, version=answer.version) == answer)
