"""What was measured of the paper's tables, kept as JSON."""
