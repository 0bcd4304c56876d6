"""Everything that talks to a Kubernetes API server. Nothing outside this package imports ``kubernetes``."""
