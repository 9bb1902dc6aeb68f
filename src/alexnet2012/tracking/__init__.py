"""Records of a run and the views of them: files, W&B, TensorBoard, the terminal."""
