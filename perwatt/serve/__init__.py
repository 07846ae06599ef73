"""Batching and HTTP in front of Models: many clients, batches that cost no latency."""
