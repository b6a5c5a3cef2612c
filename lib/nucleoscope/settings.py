"""Every setting of a run, once."""
