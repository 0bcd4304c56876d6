"""Several processes that carry a pod's connections, and the one that looks after them."""
