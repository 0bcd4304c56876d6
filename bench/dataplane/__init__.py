"""Our sidecars side by side with Envoy and HAProxy, in one run, on one machine: ``python -m bench.dataplane``.

See ``bench/README.md`` for what is measured, what is equal between the pairs and what is not.
"""
