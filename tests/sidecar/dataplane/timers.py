"""Timers of an event loop that pass when the test says so."""

from __future__ import annotations


class Loop:
    """Calls back when the test says so."""

    def __init__(self):
        self.timers = []
        self.now = 100.0

    def time(self):
        return self.now

    def advance(self, seconds):
        """Let time pass, and call what falls due on the way, each at its own moment."""
        end = self.now + seconds
        while self.timers and (first := min(self.timers, key=lambda timer: timer.due)).due <= end:
            self.timers.remove(first)
            self.now = first.due
            first.call()
        self.now = end

    def call_later(self, delay, call, *arguments):
        timer = Timer(self, delay, lambda: call(*arguments))
        self.timers.append(timer)
        return timer

    def fire(self):
        (timer,) = self.timers
        self.timers = []
        self.now = timer.due
        timer.call()


class Timer:
    def __init__(self, loop, delay, call):
        self.loop, self.delay, self.call = loop, delay, call
        self.due = loop.now + delay

    def cancel(self):
        self.loop.timers.remove(self)
