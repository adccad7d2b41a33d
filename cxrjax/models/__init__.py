"""Networks under Keras' layer names, their head, their registry and their weights."""
