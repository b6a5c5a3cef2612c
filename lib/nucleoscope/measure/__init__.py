"""From tokens and logits to candidate sets, to the quantities of each token, to records."""
