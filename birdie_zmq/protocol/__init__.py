"""What travels between processes: messages, their bytes, and the sockets that carry them."""
