"""VAE-GAN purification: images moved along the discriminator's gradient, then decoded from their latent."""
