"""Notices hung and failed ranks and says which collective each one is in."""
