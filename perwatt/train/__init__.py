"""Train a network and deploy exactly what was trained: training forms, the loop, verified export."""
