"""``birdie-zmq ray up``: workers as actors of a Ray cluster. Only `cluster` imports ray, which an extra brings."""
