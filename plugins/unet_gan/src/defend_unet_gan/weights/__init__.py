"""Shipped weights of U-Net GAN, with their cards."""
