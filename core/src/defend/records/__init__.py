"""What a run remembers and its folder holds: rows, journal, files, and their one reader. Nothing here attacks."""
