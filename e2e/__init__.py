"""Suites against a real Kubernetes, the harness that starts one, and the kit that it is built from."""
