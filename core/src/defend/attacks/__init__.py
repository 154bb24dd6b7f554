"""Attacks: the families that core offers, and the host that holds every attack to its contract."""
