"""The task itself: a mailbox, groups of messages, one transaction for each group, and then the answers.

See :mod:`controller.engine.core` for the promise that the order here keeps.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from controller.engine import upkeep
from controller.engine.publisher import Publisher
from controller.engine.settings import EngineSettings
from controller.engine.state import State
from controller.engine.subscriptions import SnapshotWatch, Subscription
from controller.engine.timers import Due
from controller.errors import ConfigError, ControllerError, NotReady, StoreError
from controller.store import Store, Stored
from controller.view import Change, View
from graph.flow import EdgeKey, Flow
from graph.model import WorkloadRef

#: Wait no longer than this for the next message, so that a wall clock that was set is noticed (seconds).
_LOOK_AT_CLOCK = 5.0
#: And no shorter, so that a clock that stands still does not make us spin.
_AT_LEAST = 0.005

_log = logging.getLogger(__name__)

type Operation[T] = Callable[[State, float], T]


@dataclass(slots=True, eq=False)
class _Message:
    """What to do, and who waits for it; nobody waits for what the engine tells itself."""

    operation: Operation[object]
    reply: asyncio.Future[object] | None = None

    def answer(self, value: object) -> None:
        if self.reply is not None and not self.reply.done():
            self.reply.set_result(value)

    def fail(self, error: ControllerError) -> None:
        if self.reply is not None and not self.reply.done():
            self.reply.set_exception(error)
            self.reply.exception()  # seen, even when the sender has gone away meanwhile


class Worker:
    """Owns the state and the store. Parameters as of :class:`controller.engine.Engine`."""

    def __init__(self, store: Store, trust_domain: str, settings: EngineSettings, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.settings = settings
        self.store = store
        self.flows: deque[Flow] = deque(maxlen=settings.recent_flows)
        self._trust_domain = trust_domain
        self._publisher = Publisher(trust_domain)
        self._state: State | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="hedgerow-store")
        self._mailbox: asyncio.Queue[_Message | None] = asyncio.Queue(settings.mailbox)
        self._began = asyncio.Event()
        self._finished = asyncio.Event()
        self._refusing = False
        self._started_at = 0.0
        self._upkeep_after = 0.0
        self._published = asyncio.Event()
        self._subscriptions: set[Subscription] = set()
        self._watches: dict[WorkloadRef, set[SnapshotWatch]] = {}

    @property
    def view(self) -> View:
        return self._publisher.view

    # --- what others call

    async def ask[T](self, operation: Operation[T]) -> T:
        """Have ``operation`` done in its turn; its result, or its error, comes when it is stored."""
        if self._refusing:
            raise _stopped()
        reply: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        await self._mailbox.put(_Message(operation, reply))
        if self._finished.is_set():
            self._refuse_waiting()
        return await reply  # type: ignore[return-value]  # the future of a message of type T

    async def began(self) -> None:
        await self._began.wait()
        if self._refusing:  # without a state it would only be reading it again
            raise _stopped()

    async def stop(self) -> None:
        if not self._refusing:
            self._refusing = True
            await self._mailbox.put(None)
        await self._finished.wait()

    async def published(self) -> None:
        """Wait for the next view.

        :raises NotReady: when there will be none
        """
        event = self._published
        await event.wait()
        if self._finished.is_set():
            raise _stopped()

    def subscribe(self, limit: int) -> Subscription:
        subscription = Subscription(limit, self._subscriptions.discard)
        if self._finished.is_set():
            subscription.end()
        else:
            self._subscriptions.add(subscription)
        return subscription

    def watch(self, workload: WorkloadRef) -> SnapshotWatch:
        watch = SnapshotWatch(workload, self.view.snapshots.get(workload), self._unwatch)
        if self._finished.is_set():
            watch.end()
        else:
            self._watches.setdefault(workload, set()).add(watch)
        return watch

    def _unwatch(self, watch: SnapshotWatch) -> None:
        watches = self._watches.get(watch.workload, set())
        watches.discard(watch)
        if not watches:
            self._watches.pop(watch.workload, None)

    def refused(self, since: float) -> Mapping[EdgeKey, int]:
        return self._state.graph.windows.denied(since) if self._state is not None else {}

    def refused_requests(self, since: float) -> Mapping[EdgeKey, int]:
        return self._state.graph.refused_requests.denied(since) if self._state is not None else {}

    # --- the task

    async def run(self) -> None:
        if self._refusing or self._began.is_set():
            raise NotReady("the engine ran before", remedy="make another one")
        try:
            await self._load()
            self._started_at = self.clock()
            await self._serve([_Message(upkeep.advance)])
            if self._state is None:
                raise StoreError("the state could not be stored when it was loaded", remedy="look at the log above")
            self._began.set()
            while await self._turn():
                pass
        finally:
            self._finish()

    async def _turn(self) -> bool:
        """Serve what waits, or what is due. False: there will be no more."""
        group, last = await self._gather()
        due = self._state.timers.next() if self._state is not None else None
        behind = self._state is None or bool(self._state.stale) or (due is not None and due <= self.clock())
        if behind and self._may_keep_up():
            group.insert(0, _Message(upkeep.advance))
        if group:
            await self._serve(group)
        return not last

    async def _gather(self) -> tuple[list[_Message], bool]:
        """The messages that wait, at most a group, and whether the last one was among them."""
        group: list[_Message] = []
        try:
            async with asyncio.timeout(self._pause()):
                message = await self._mailbox.get()
        except TimeoutError:
            return group, False
        while message is not None:
            group.append(message)
            if len(group) >= self.settings.group or self._mailbox.empty():
                return group, False
            message = self._mailbox.get_nowait()
        return group, True

    def _pause(self) -> float:
        if self._state is not None and self._state.stale and self._may_keep_up():
            return 0.0
        due = self._state.timers.next() if self._state is not None else None
        if due is None or not self._may_keep_up():
            return _LOOK_AT_CLOCK
        return min(max(due - self.clock(), _AT_LEAST), _LOOK_AT_CLOCK)

    def _may_keep_up(self) -> bool:
        return asyncio.get_running_loop().time() >= self._upkeep_after

    async def _serve(self, group: list[_Message]) -> None:
        """Do a group in one transaction; when something in it fails half-way, each of it in its own."""
        try:
            if self._state is None:
                await self._load()
            await self._transact(group)
        except StoreError as error:
            _log.error("a change could not be stored, and was not made: %s", error)
            await self._restore()
            failure = NotReady(f"the change could not be stored: {error}", remedy="correct that and try again")
            for message in group:
                message.fail(failure)
        except asyncio.CancelledError:
            for message in group:
                message.fail(_stopped())
            raise
        except Exception as error:
            await self._restore()
            if len(group) > 1:
                for message in group:
                    await self._serve([message])
                return
            if isinstance(error, ControllerError):
                group[0].fail(error)
            else:
                _log.exception("an operation failed; the state is as it was before it")
                group[0].fail(NotReady(f"internal error: {type(error).__name__}", remedy="see the controller's log"))
        else:
            return
        if any(message.reply is None for message in group):  # do not try again at once what time made due
            self._upkeep_after = asyncio.get_running_loop().time() + _LOOK_AT_CLOCK

    async def _transact(self, group: list[_Message]) -> None:
        state = self._state
        assert state is not None
        now = self.clock()
        answers: list[tuple[_Message, object, ControllerError | None]] = []
        published = state.published_changes
        for message in group:
            if message.reply is not None and message.reply.done():
                continue  # its sender has given up before it began
            before = state.changes
            try:
                answers.append((message, message.operation(state, now), None))
            except ControllerError as error:
                if state.changes != before:
                    raise
                answers.append((message, None, error))
        if state.changes != published:
            await self._aside(self._complete, state, now)
            self._publish(state, now)
        for message, value, refusal in answers:
            if refusal is not None:
                message.fail(refusal)
            else:
                message.answer(value)

    def _publish(self, state: State, now: float) -> None:
        view, change = self._publisher.publish(state, now, started_at=self._started_at)
        self.flows.extend(change.flows)
        for subscription in tuple(self._subscriptions):
            subscription.offer(change)
        self._offer_snapshots(view, change)
        event, self._published = self._published, asyncio.Event()
        event.set()

    def _offer_snapshots(self, view: View, change: Change) -> None:
        for ref in self._watches.keys() & set(change.snapshots):
            for watch in tuple(self._watches[ref]):
                watch.offer(view.snapshots[ref])

    # --- compiler and store: always off the loop, and one thing after the other

    async def _aside[**P, T](self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Have the writer's thread do something long: the loop goes on, and this task waits."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, partial(work, *args, **kwargs))

    def _complete(self, state: State, now: float) -> None:
        """Compile what has to be compiled, and write. Nobody else touches the state meanwhile."""
        writes = state.settle(now)
        if writes:
            self.store.commit(writes)

    async def _load(self) -> None:
        """Take the state from the store, at the start and after a failure."""
        stored = await self._aside(self.store.load)
        if stored.trust_domain not in ("", self._trust_domain):
            raise ConfigError(
                f"the database belongs to the trust domain {stored.trust_domain!r}",
                field="trust_domain",
                remedy=f"set trust_domain to {stored.trust_domain!r}, or use another state_dir",
            )
        self._state = await self._aside(self._state_of, stored, self.view, self.clock())

    def _state_of(self, stored: Stored, view: View, now: float) -> State:
        """The state as it was stored, with what a view shows that is not stored at once.

        An inventory that follows a cluster is in force before it is on disk. The one on disk knows instances that have
        gone since, and whoever gave us the newer one has no reason to give it again.
        """
        ahead = view.inventory.revision > stored.inventory_revision
        if ahead:
            inventory = view.inventory
            stored = replace(stored, inventory=inventory.to_dict(), inventory_revision=inventory.revision)
        state = State(stored, self._trust_domain, self.settings, now, dict(view.sidecars))
        if ahead:
            state.timers.at(now, Due.INVENTORY, "")
        return state

    async def _restore(self) -> None:
        """Throw the working state away. Until it can be loaded again every message is answered with an error."""
        self._state = None
        try:
            await self._load()
        except ControllerError as error:
            _log.error("the stored state can not be read: %s", error)

    # --- the end

    def _finish(self) -> None:
        self._refusing = True
        self._refuse_waiting()
        self._writer.submit(partial(self.store.close)).result()  # after a write that may still be under way
        self._writer.shutdown()
        for subscription in tuple(self._subscriptions):
            subscription.end()
        for watches in tuple(self._watches.values()):
            for watch in tuple(watches):
                watch.end()
        self._finished.set()
        self._published.set()
        self._began.set()

    def _refuse_waiting(self) -> None:
        while not self._mailbox.empty():
            message = self._mailbox.get_nowait()
            if message is not None:
                message.fail(_stopped())


def _stopped() -> NotReady:
    return NotReady("the engine has stopped", remedy="start the controller again")
