"""PuVAE with a detector (paper 003): a conditional VAE reconstructs for every label, the error tells attacks apart."""
