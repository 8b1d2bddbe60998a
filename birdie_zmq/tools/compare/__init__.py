"""``birdie-zmq compare``: two results of lm_eval, held against each other sample by sample."""
