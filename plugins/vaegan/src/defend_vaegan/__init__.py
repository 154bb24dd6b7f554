"""VAE-GAN purification (paper 002): images moved along the discriminator's gradient, then decoded from their latent."""
