"""Every per-token quantity, once."""
