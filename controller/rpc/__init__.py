"""The gRPC side of the controller: two servers, four services, and the one place that decides who is calling."""
