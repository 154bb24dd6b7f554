"""Faults put in on purpose: plugins that misbehave, files that fail, damage, signals. `python -m tests.faults` counts.

An injection breaks one thing and says what was wrong afterwards. Groups are modules with `injections()`; `harness` has
what they share.
"""
