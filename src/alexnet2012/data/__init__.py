"""Data sets, preprocessing and input pipelines for training and evaluation."""
