"""Scenarios, clocks, meters, statistics, engines, Records, reports."""
