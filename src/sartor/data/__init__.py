"""Readers of image data, one file per source, and the splits that serve batches."""
