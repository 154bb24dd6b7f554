"""APuDAE (paper 001): purification by gradient descent on the reconstruction error of a denoising autoencoder."""
