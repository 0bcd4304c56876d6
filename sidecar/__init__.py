"""The in-pod proxy: captures a pod's traffic, authenticates it with mutual TLS, enforces policy, reports flows."""
