"""What something is made of, as a hash: code, sources, and what values hold."""
