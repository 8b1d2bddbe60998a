"""``birdie-zmq compare``: compares two lm_eval results sample by sample."""
