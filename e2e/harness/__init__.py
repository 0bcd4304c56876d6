"""Starts a real Kubernetes for the suites and hands out what tests need of it."""
