"""Accuracy against labels: a package on a labelled data set, with any engine and precision."""
