"""One model on several hosts: rank 0 broadcasts each backend call to the other ranks."""
