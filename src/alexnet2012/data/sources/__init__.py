"""Where images come from: folders, archives, ILSVRC's files, downloads, embedded photographs."""
