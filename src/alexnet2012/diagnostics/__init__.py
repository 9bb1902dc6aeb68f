"""Checks and measurements of the machine."""
