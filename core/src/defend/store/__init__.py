"""Attacked images on disk, filed under everything that they depend on."""
