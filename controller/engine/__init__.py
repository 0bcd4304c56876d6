"""The engine: one task owns all mutable state, others send it messages and read immutable views."""

from __future__ import annotations

from controller.engine.core import AuditPage, Engine
from controller.engine.settings import EngineSettings
from controller.engine.subscriptions import SnapshotWatch, Subscription

__all__ = ["AuditPage", "Engine", "EngineSettings", "SnapshotWatch", "Subscription"]
