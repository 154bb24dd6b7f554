"""Shipped weights of PuVAE and classifier A, with their cards."""
