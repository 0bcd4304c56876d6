"""What we use of ``kubernetes.aio``, without the rest of it.

The package imports a class for every kind of every API as soon as anything of it is imported: 1,700 modules, over
100 MB, and seconds in which the controller does nothing else. We need its credentials, its configuration and its
connection, and send JSON. So those modules are loaded under empty packages, which are taken away again: whoever imports
``kubernetes`` in the same process gets all of it, as ever. Where the package is laid out otherwise than we know, it is
imported as a whole.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

log = logging.getLogger("hedgerow.kube")

_ROOT = "kubernetes"
_CLIENT = "kubernetes.aio.client"
#: Packages whose own ``__init__`` imports everything.
_PACKAGES = (_ROOT, "kubernetes.aio", _CLIENT)


@dataclass(frozen=True, slots=True)
class Library:
    """The parts of ``kubernetes.aio``; it has no types.

    :param connection: ``RESTClientObject``
    :param wrong: raised for a configuration that can not be used
    """

    configuration: Callable[[], Any]
    connection: Callable[[Any], Any]
    load_incluster_config: Callable[..., Any]
    load_kube_config: Callable[..., Any]
    wrong: type[Exception]


@functools.cache
def library() -> Library:
    """Load it, once; takes a tenth of a second.

    :raises ImportError: when it is not installed
    """
    if _CLIENT in sys.modules:
        return _load()
    try:
        with _empty_packages():
            return _load()
    except (ImportError, AttributeError) as error:
        log.info("the kubernetes package is imported as a whole: %s", error)
        return _load()


def _load() -> Library:
    configuration = importlib.import_module(f"{_CLIENT}.configuration").Configuration
    client = sys.modules[_CLIENT]
    if not hasattr(client, "Configuration"):  # what the modules below expect of it
        vars(client).update(Configuration=configuration, ApiClient=None)
    rest = importlib.import_module(f"{_CLIENT}.rest")
    config = importlib.import_module("kubernetes.aio.config")
    return Library(
        configuration,
        rest.RESTClientObject,
        config.load_incluster_config,
        config.load_kube_config,
        config.ConfigException,
    )


@contextmanager
def _empty_packages() -> Iterator[None]:
    """Let the packages be there without what they import."""
    found = importlib.util.find_spec(_ROOT)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"{_ROOT} is not installed")
    before = {name: module for name, module in sys.modules.items() if _ours(name)}
    try:
        for name in _PACKAGES:
            package = ModuleType(name)
            inside = Path(*name.split(".")[1:])
            package.__path__ = [str(Path(place) / inside) for place in found.submodule_search_locations]
            sys.modules[name] = package
        yield
    finally:
        for name in [name for name in sys.modules if _ours(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def _ours(name: str) -> bool:
    return name == _ROOT or name.startswith(f"{_ROOT}.")
