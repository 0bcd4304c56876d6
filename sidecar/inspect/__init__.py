"""The ``inspect`` lane: mitmproxy's sans-IO layers behind our TLS, our guards and our verdicts.

Nothing heavy is imported here: mitmproxy costs tens of megabytes, and most sidecars never need it. The light half
(:mod:`~sidecar.inspect.hub`, :mod:`~sidecar.inspect.settings`, the guards) is imported at the start;
:mod:`sidecar.inspect.lane`, which brings mitmproxy, by the first connection that is inspected.
"""
