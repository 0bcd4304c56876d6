"""The command: ``python -m controller --config F``.

Exit codes: 0 after an orderly end, 2 when configuration, inventory or database can not be used, 1 for everything else.
What a person can mend is one line on standard error, never a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from controller.errors import ConfigError, ControllerError, InventoryError, StoreError
from controller.settings import Settings

#: Settings that have a flag of the same name.
_FLAGS = {
    "state_dir": "the directory for keys, database and tokens",
    "inventory": "the inventory file",
    "trust_domain": "the trust domain",
    "grpc_listen": "address:port for sidecars",
    "issuer_listen": "address:port for first certificates",
    "web_listen": "address:port, or fd:N, for the web API and page",
    "log_level": "debug, info, warning or error",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code.

    :param arguments: without the program's name; those of this process when None
    """
    parser = argparse.ArgumentParser(prog="controller", description="The control plane of Hedgerow.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="controller.yaml")
    for name, what in _FLAGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=f"{what}, in place of the file's")
    options = vars(parser.parse_args(arguments))
    try:
        settings = Settings.load(options.pop("config"), options)
        _run(settings)
    except (ConfigError, InventoryError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ControllerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _run(settings: Settings) -> None:
    # gRPC's core writes to standard error by itself; what matters of it comes back as exceptions
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", stream=sys.stderr
    )
    _protect_memory()
    _raise_descriptor_limit()

    from controller import anew, app

    if asyncio.run(app.run(settings)):
        try:
            anew.replace()
        except OSError as error:
            raise ControllerError(f"it can not begin anew: {error}", remedy="start the controller again") from None


def _protect_memory() -> None:
    """No core dump: it would hold the authority's key."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _raise_descriptor_limit() -> None:
    """Take all the descriptors that we may have: strangers' connections must not use up the sidecars'."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main())
