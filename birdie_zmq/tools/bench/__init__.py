"""``birdie-zmq bench``: how fast a model answers what lm_eval asks, where the time goes, and what would save some of it."""
