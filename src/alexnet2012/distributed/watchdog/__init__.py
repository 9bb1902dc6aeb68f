"""Detects hung and failed ranks and reports which collective each rank is in."""
