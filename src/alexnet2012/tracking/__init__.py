"""Experiment tracking: records in files, W&B, TensorBoard, the progress bar, lists of runs."""
