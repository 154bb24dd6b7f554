"""Report to JSON, terminal table, CSV records, pictures."""
