"""The networks: one U-Net for every method, and the autoencoder of latent diffusion."""
