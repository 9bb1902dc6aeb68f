"""Data sets, preprocessing and the loaders that feed a training or an evaluation."""
