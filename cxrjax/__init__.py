"""cxrjax: train, compare, explain and audit chest X-ray classifiers in JAX."""

__version__ = "0.1.0"
