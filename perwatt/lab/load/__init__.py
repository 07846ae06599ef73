"""Load tests of a server: requests at seeded times, latency counted from the time that each was due."""
