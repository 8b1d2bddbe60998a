"""The wire protocol: messages, their encoding, and the ZeroMQ sockets."""
