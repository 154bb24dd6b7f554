"""Evaluate, train and calibrate with objects of a session: a script's, or a notebook's."""
