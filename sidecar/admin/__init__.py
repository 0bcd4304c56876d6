"""What a sidecar shows of itself to people and programs of its own pod."""
