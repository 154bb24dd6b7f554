"""APuDAE (Kalaria et al. 2022): descent of the reconstruction error of a denoising autoencoder."""
