"""Ctrl-C while something is awaited."""

from __future__ import annotations

import asyncio
import signal
import threading

import pytest

from hedgerow.cli.interruptible import run


def test_what_is_awaited_comes_back():
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    assert run(work()) == 7
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_in_the_middle_of_a_callback_ends_what_waits_after_it():
    """asyncio's own way cancels the future at once, and the callback can not give it its result any more."""
    faults = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: faults.append(context))
        waited = loop.create_future()

        def answer() -> None:
            signal.raise_signal(signal.SIGINT)
            waited.set_result(None)

        loop.call_soon(answer)
        await waited
        await asyncio.Event().wait()  # the cancellation came before or here

    with pytest.raises(KeyboardInterrupt):
        run(work())
    assert faults == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_one_does_not_wait_for_what_the_first_ends():
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            signal.raise_signal(signal.SIGINT)
            await asyncio.Event().wait()

    async def signalled() -> None:
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
        await work()

    with pytest.raises(KeyboardInterrupt):
        run(signalled())


def test_what_is_cancelled_otherwise_is_no_wish_of_a_persons():
    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run(work())


def test_who_ignores_the_signal_goes_on_ignoring_it():
    """A command that a shell began in the background."""

    async def work() -> str:
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0)
        return "done"

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run(work()) == "done"
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_runs_in_a_thread_too():
    found = []

    async def work() -> None:
        found.append(threading.current_thread())

    thread = threading.Thread(target=lambda: run(work()))
    thread.start()
    thread.join(60)
    assert found == [thread]
