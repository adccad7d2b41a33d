"""Images on disk to batches: sources, the decoded store, splits, audit, both input paths."""
