"""Machines that do not exist, whose true joules are known: for tests, trials and demonstrations of the meters."""
