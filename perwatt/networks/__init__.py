"""The built-in networks, as builders that read like the papers they come from."""
