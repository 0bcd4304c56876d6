"""The webhook: ``python -m controller.injection --config injector.yaml``, which is ``hedgerow injector``.

Exit codes: 0 after an orderly end, 2 when the settings can not be used.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from controller.errors import ConfigError
from controller.injection.program_settings import InjectorSettings
from controller.injection.settings import InjectionSettings


def main(
    arguments: Sequence[str] | None = None, accept: Callable[[InjectionSettings], None] = lambda settings: None
) -> int:
    """The command; returns the exit code.

    :param arguments: without the program's name; those of this process when None
    :param accept: raises ConfigError for what is injected but would not be taken where it arrives, which only somebody
        who knows the sidecar can tell
    """
    parser = argparse.ArgumentParser(prog="injector", description="Puts sidecars into pods, for API servers.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="injector.yaml")
    options = parser.parse_args(arguments)
    try:
        settings = InjectorSettings.load(options.config)
        accept(settings.injection)
        logging.basicConfig(
            level=settings.log_level.upper(),
            format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
            stream=sys.stderr,
        )
        _no_core_dump()

        from controller.injection import app

        gc.freeze()  # what is loaded stays: full collections need not look at it, and pods wait for none
        asyncio.run(app.run(settings))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _no_core_dump() -> None:
    """It would hold the certificate's key."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main())
