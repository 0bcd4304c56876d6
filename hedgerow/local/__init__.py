"""A whole mesh on one machine: real processes in real network namespaces, for the demo and the tests."""
