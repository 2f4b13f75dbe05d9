"""Many machines: a chief shares out its work, and workers do it."""
