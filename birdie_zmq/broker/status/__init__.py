"""The status of a broker: a snapshot of its state, served as a page, as JSON and as Prometheus metrics."""
