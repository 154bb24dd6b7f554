"""Gilbert 2020: a small denoising autoencoder as purifier, and fine-tuning of the classifier behind it."""
