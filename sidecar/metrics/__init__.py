"""What a sidecar counts, in Prometheus' words: Istio's metrics for dashboards, ours for those who run it."""
