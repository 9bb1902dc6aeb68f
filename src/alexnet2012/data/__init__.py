"""From pictures on disk to batches: sources, the prepared store, the plan of draws, the loader."""
