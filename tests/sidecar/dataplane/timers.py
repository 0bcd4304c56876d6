"""Timers of an event loop that pass when the test says so."""

from __future__ import annotations


class Loop:
    """Calls back when the test says so."""

    def __init__(self):
        self.timers = []

    def call_later(self, delay, call, *arguments):
        timer = Timer(self, delay, lambda: call(*arguments))
        self.timers.append(timer)
        return timer

    def fire(self):
        (timer,) = self.timers
        self.timers = []
        timer.call()


class Timer:
    def __init__(self, loop, delay, call):
        self.loop, self.delay, self.call = loop, delay, call

    def cancel(self):
        self.loop.timers.remove(self)
