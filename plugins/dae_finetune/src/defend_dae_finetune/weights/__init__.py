"""Shipped weights of the autoencoder, of the paper's two victims and of a fine-tuned one, with their cards."""
