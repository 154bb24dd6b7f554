"""PuVAE with a detector (Wester 2020): a conditional VAE reconstructs for every label; the error tells attacks."""
