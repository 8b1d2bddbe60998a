"""What a person sees of a broker: a snapshot of its state, as a page, JSON and Prometheus metrics."""
