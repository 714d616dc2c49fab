"""Methods by name, and trained weights."""
