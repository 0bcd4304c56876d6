"""The user's addons: files with mitmproxy hooks, loaded by their path and called on the way of a request.

Rules:

1. An addon is trusted code (it runs in the sidecar), and still its result is judged: see
   :class:`~sidecar.inspect.judging.Judge`.
2. It is called at once and has to answer at once; while it works, the whole sidecar waits. A hook that is a coroutine,
   and a hook that we do not have, is refused when it is loaded, not ignored.
3. What it raises is logged and counted, and the request is refused, or passes where the setting says so.

mitmproxy's ``ctx`` is not there: there is no master, no options and no other addon.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from mitmproxy.http import HTTPFlow

from sidecar.errors import ConfigError

_log = logging.getLogger(__name__)

#: The hooks that are called.
HOOKS: Final = ("requestheaders", "request", "responseheaders", "response", "error", "websocket_message")
#: Functions that mitmproxy calls once and we do not: they need what we do not have.
_OTHERS: Final = frozenset(
    {
        "load", "configure", "running", "done", "client_connected", "client_disconnected", "server_connect",
        "server_connected", "server_disconnected", "server_connect_error", "http_connect", "http_connected",
        "http_connect_error", "http_connect_upstream", "next_layer", "tls_clienthello", "tls_start_client",
        "tls_start_server", "tls_established_client", "tls_established_server", "tls_failed_client",
        "tls_failed_server", "tcp_start", "tcp_message", "tcp_end", "tcp_error", "udp_start", "udp_message",
        "udp_end", "udp_error", "dns_request", "dns_response", "dns_error", "quic_start_client", "quic_start_server",
        "socks5_auth", "update", "add_log", "websocket_start", "websocket_end",
    }
)  # fmt: skip
#: Errors of one hook that are logged with their traceback; the rest is counted.
_LOGGED: Final = 5


class BadAddon(ConfigError):
    """An addon that can not be used. The message names the file and the remedy."""


class Addons:
    """Those of the settings, in order."""

    def __init__(self, hooks: dict[str, list[tuple[str, Callable[[HTTPFlow], object]]]]) -> None:
        self._hooks = hooks
        self.failures = 0

    @classmethod
    def load(cls, paths: Sequence[Path]) -> Addons:
        """:raises BadAddon: naming the file"""
        hooks: dict[str, list[tuple[str, Callable[[HTTPFlow], object]]]] = {name: [] for name in HOOKS}
        for number, path in enumerate(paths):
            module = _import(path, f"hedgerow_addon_{number}_{path.stem}")
            for addon in (module, *getattr(module, "addons", ())):
                _collect(addon, path, hooks)
        if not any(hooks.values()):
            names = ", ".join(str(path) for path in paths)
            raise BadAddon(f"inspect.addons: no hook in {names}; write one of {', '.join(HOOKS)}")
        return cls(hooks)

    def wants(self, hook: str) -> bool:
        """Whether there is anybody to call."""
        return bool(self._hooks[hook])

    def call(self, hook: str, flow: HTTPFlow) -> bool:
        """Call every addon's ``hook``; False as soon as one fails."""
        for name, function in self._hooks[hook]:
            try:
                function(flow)
            except Exception:
                self.failures += 1
                if self.failures <= _LOGGED:
                    _log.exception("the addon %s failed in %s", name, hook)
                else:
                    _log.error("the addon %s failed in %s, for the %dth time", name, hook, self.failures)
                return False
        return True


def _import(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadAddon(f"inspect.addons: {path} is no Python file; name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles of the file look there
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError:
        del sys.modules[name]
        raise BadAddon(f"inspect.addons: there is no {path}; mount it, or take it out of the settings") from None
    except Exception as error:
        del sys.modules[name]
        raise BadAddon(
            f"inspect.addons: {path} can not be loaded: {type(error).__name__}: {error}; run it with Python to see why"
        ) from error
    return module


def _collect(addon: Any, path: Path, hooks: dict[str, list[tuple[str, Callable[[HTTPFlow], object]]]]) -> None:
    for hook in (*HOOKS, *_OTHERS):
        function = getattr(addon, hook, None)
        if not callable(function):
            continue
        if hook in _OTHERS:
            raise BadAddon(f"inspect.addons: {path} has the hook {hook}, which is not called here; take it out")
        if inspect.iscoroutinefunction(function):
            raise BadAddon(f"inspect.addons: {hook} of {path} is a coroutine; write it as a plain function")
        hooks[hook].append((path.name, function))
