"""Planning of requests as padded steps: the prefix tree, planners, shape buckets and the cost model. Pure NumPy."""
