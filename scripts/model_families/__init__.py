"""Which model types are measured right: small random models, a reference of its own, the trials and their page."""
