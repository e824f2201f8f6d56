"""Imagery on its way from raw files to batches."""
