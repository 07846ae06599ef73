"""One file per meter the lab can read."""
