"""The network: layers, loss, optimizer, schedule, and their cost."""
