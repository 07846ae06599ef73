"""Graph and machine to Plan: every decision, with its reason."""
