"""Stages, catalog and recipes: the pipeline around the dsfer library."""

import os

STARTED_BY = os.getppid()
"""The process that started this one, noted before the slow imports of a stage begin."""
