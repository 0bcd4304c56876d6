"""The control plane: inventory, issuer, learning, compiling, push, and the web API."""
