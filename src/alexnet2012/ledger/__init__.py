"""Every claim of the paper, how it is measured, and the verdict."""
