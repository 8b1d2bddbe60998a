"""Follower ranks: the workers on the other hosts of a process group, whose model processes follow rank 0."""
