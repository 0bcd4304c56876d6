"""Workload identity: SPIFFE IDs, the certificate authority, verification, rotation, trust bundles and TLS contexts."""
