"""The command. ``python -m sidecar --config F`` runs the sidecar; ``python -m sidecar capture --config F`` installs the
capture of a pod's connections (``--remove`` removes it, ``--check`` tells whether it is in force), which takes rights
that the sidecar itself does not have. In a pod, ``--config-env NAME`` takes the place of a file.

Exit codes: 0 after an orderly end, 1 when it could not begin or go on, 2 when it was called or configured wrongly.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sidecar.capture_settings import Capture, Udp
from sidecar.errors import ConfigError, SidecarError
from sidecar.settings import MAX_WORKERS, Address, Settings

if TYPE_CHECKING:
    from sidecar.capture_rules import CaptureRules

#: glibc's defaults map and unmap every buffer over 128 KiB; without that, bulk traffic is twice as fast (measured).
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "67108864", "MALLOC_TRIM_THRESHOLD_": "134217728"}

_PR_SET_DUMPABLE = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code.

    :param arguments: without the program's name; those of this process when None
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["capture"]:
        return _reported(lambda: _capture(given[1:]))
    return _reported(lambda: _run(given))


def _run(given: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="sidecar", description="The in-pod proxy of Hedgerow.")
    _add_config(parser, required=True)
    text = f"processes that carry connections, 1 to {MAX_WORKERS}; instead of what the file says"
    parser.add_argument("--workers", type=int, metavar="N", help=text)
    options = parser.parse_args(given)
    if any(name not in os.environ for name in ALLOCATOR):
        _begin_again_with(ALLOCATOR)
    protect_memory()
    raise_descriptor_limit()
    settings = _settings(options)
    if options.workers is not None:
        settings = with_workers(settings, options.workers)
    # gRPC's core writes to standard error by itself; what matters of it comes back as exceptions
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from sidecar import logs

    logs.configure(settings.log_level)

    import asyncio

    import uvloop

    from sidecar import app

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(app.run(settings))
    return 0


def _add_config(parser: argparse.ArgumentParser, *, required: bool) -> None:
    one = parser.add_mutually_exclusive_group(required=required)
    one.add_argument("--config", type=Path, metavar="FILE", help="sidecar.yaml")
    text = "environment variable that holds the same document, as YAML or JSON"
    one.add_argument("--config-env", metavar="NAME", help=text)


def _settings(options: argparse.Namespace) -> Settings:
    if options.config_env is not None:
        return Settings.from_environment(options.config_env, os.environ)
    return Settings.load(options.config)


def with_workers(settings: Settings, workers: int) -> Settings:
    """The settings with another number of workers.

    :raises ConfigError: when there can not be so many
    """
    if not 1 <= workers <= MAX_WORKERS:
        raise ConfigError(f"--workers: {workers} is out of range; write a number from 1 to {MAX_WORKERS}")
    return dataclasses.replace(settings, workers=workers)


def _capture(given: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="sidecar capture", description="Send this pod's connections through its sidecar. Needs NET_ADMIN."
    )
    _add_config(parser, required=False)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--remove", action="store_true", help="remove what was installed")
    action.add_argument("--check", action="store_true", help="fail when the rules are not in force; changes nothing")
    options = parser.parse_args(given)
    if not options.remove and options.config is None and options.config_env is None:
        parser.error("--config FILE or --config-env NAME is needed; only --remove needs none")
    from sidecar import capture

    if options.remove:
        capture.remove()
        return 0
    settings = _settings(options)
    if options.check:
        from sidecar import capture_check

        capture_check.check(capture_rules(settings), settings.addresses)
    else:
        capture.install(capture_rules(settings))
    return 0


def capture_rules(settings: Settings) -> CaptureRules:
    """What is captured under these settings.

    :raises ConfigError: when they do not ask for capture, or would capture the sidecar itself
    """
    from sidecar.capture_rules import CaptureRules

    if settings.capture is not Capture.REDIRECT:
        raise ConfigError(f"capture: {settings.capture} needs no capture rules; write capture: redirect, or skip this")
    excluded = settings.exclude_cidrs
    if settings.mark is not None:
        # gRPC's sockets can not be marked, so the controller is told by its address
        excluded += (_host(settings.controller, "controller"), _host(settings.issuer, "issuer"))
    return CaptureRules(
        uid=settings.uid if settings.mark is None else None,
        mark=settings.mark or 0,
        exclude_cidrs=excluded,
        outbound_port=settings.outbound_listen.port,
        inbound_port=settings.inbound_listen.port,
        sidecar_ports=tuple(
            one.port
            for one in (settings.inbound_listen, settings.ready_listen, settings.stats_listen)
            if one is not None
        ),
        exclude_outbound_ports=settings.exclude_outbound_ports,
        exclude_inbound_ports=settings.exclude_inbound_ports,
        dns_port=settings.dns.listen.port if settings.dns_proxy else 0,
        drop_others=settings.udp is Udp.DROP,
    )


def _host(address: Address, field: str) -> str:
    try:
        return str(ipaddress.ip_network(address.host))
    except ValueError:
        raise ConfigError(
            f"{field}: {address.host!r} is a name, and with `mark` set connections to the controller are told by its "
            "address; write an IP address"
        ) from None


def _reported(command: Callable[[], int]) -> int:
    """Run a command; what a person can mend is one line on standard error, not a traceback."""
    try:
        return command()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SidecarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _begin_again_with(variables: dict[str, str]) -> NoReturn:
    """Replace this process by itself with more environment, which the allocator reads once, at the very start."""
    environment = {**variables, **os.environ}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606  # ourselves, no shell


def protect_memory() -> None:
    """Keep the private key from other processes of this user: no core dumps, no ptrace, no /proc/PID/mem."""
    import ctypes
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise SidecarError(f"prctl(PR_SET_DUMPABLE): {os.strerror(ctypes.get_errno())}")


def raise_descriptor_limit() -> None:
    """Take all the descriptors that we may have: the usual soft limit of 1024 is spent by a few hundred connections."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main())
