"""The ``hedgerow`` command and the local mesh."""

from graph.version import VERSION as __version__

__all__ = ["__version__"]
