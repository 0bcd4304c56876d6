"""The ``hedgerow`` command: a client of the web API, and the way to start each program."""
