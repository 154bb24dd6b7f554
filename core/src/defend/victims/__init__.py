"""Victims: the classifiers to protect, through timm."""
