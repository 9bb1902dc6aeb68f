"""Processes, the device mesh, and every collective between them."""
