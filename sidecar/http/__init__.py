"""The ``http`` lane: HTTP/1.1 judged request by request, HTTP/2 and gRPC observed."""
