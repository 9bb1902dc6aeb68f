"""Creating a store: strict decoding, resizing, and the statistics of the training set."""
