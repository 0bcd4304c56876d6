"""The path of the bytes: an epoll set of its own inside the event loop, TLS tunnels, streams and relays."""
