"""U-Net GAN (paper 000): an attention U-Net, trained as a GAN on single-step attacks, that paints images clean."""
