"""Paper 004: a small denoising autoencoder as purifier, and fine-tuning of the classifier behind it."""
