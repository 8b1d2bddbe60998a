"""``birdie-zmq doctor``: checks the requirements of a run, and names the fix for each one that is not met."""
