"""Helpers without dependencies on other packages: files, locks, seeded streams, metrics, text."""
