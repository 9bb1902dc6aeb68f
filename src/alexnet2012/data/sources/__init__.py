"""Image sources: class folders, tar archives, ILSVRC's files, downloads, embedded photographs."""
