"""Whole grids of hyper-parameters as one job: `python -m cxrjax.sweep`."""
