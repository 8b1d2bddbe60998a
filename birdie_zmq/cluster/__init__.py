"""``birdie-zmq ray up``: workers as Ray actors. Only `ray_cluster` imports ray, which is an optional extra."""
