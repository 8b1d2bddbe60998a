"""``birdie-zmq bench``: measures a model on lm_eval workloads, shows where the time goes, and advises how to save some."""
