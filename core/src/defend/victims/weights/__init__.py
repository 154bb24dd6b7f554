"""Shipped weights of victims, with their cards."""
