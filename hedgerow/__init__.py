"""The ``hedgerow`` command and the local mesh."""

__version__ = "0.1.0"
