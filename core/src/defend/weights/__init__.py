"""Trained weights: files, their cards, and where they are found. Which stage they are loaded into is `assembly`'s."""
