"""``birdie-zmq doctor``: whether all that a run needs is there, and what mends it where it is not."""
