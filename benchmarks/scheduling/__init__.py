"""Scheduling in simulation: policies side by side, as a table and a plot."""
