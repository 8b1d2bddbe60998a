"""Who may connect to a broker: keys, the allow list, authentication and roles."""
