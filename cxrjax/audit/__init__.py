"""Reasons to doubt a data set, and a classifier trained on it."""
