"""Published tables and recipes measured again, and what was kept of either. It draws nothing."""
