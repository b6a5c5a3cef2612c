"""Records on disk: the folder of a run, resuming, locking, tables of tokens."""
