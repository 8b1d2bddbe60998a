"""Access control of a broker: keys, the allow list, authentication and roles."""
