"""`defend new-plugin`: a package for a new stage, from templates."""
