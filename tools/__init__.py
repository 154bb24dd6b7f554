"""Tools for those who train: everything that the papers' tables need, on one GPU and within a budget."""
