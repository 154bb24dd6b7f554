"""Shipped weights of APuDAE, with their cards."""
