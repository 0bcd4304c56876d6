"""What the controller shows to machines: whether it is well, and numbers for Prometheus. People have the web API."""
