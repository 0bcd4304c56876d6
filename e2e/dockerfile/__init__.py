"""Builds the ``Dockerfile`` for real, without Docker and without its registry (``README.md``)."""
