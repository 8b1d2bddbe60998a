"""Child processes and signals: starting, stopping, and ending with the parent."""
