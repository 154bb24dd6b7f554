"""Baselines without weights: what image processing alone buys, for every defence to be held against."""
