"""Checks and timings of the machine, and predictions of training cost."""
