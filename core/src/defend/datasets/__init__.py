"""Data sets by name: labelled images as tensors."""
