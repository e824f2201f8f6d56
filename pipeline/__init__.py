"""Stages, catalog and recipes: the pipeline around the dsfer library."""
