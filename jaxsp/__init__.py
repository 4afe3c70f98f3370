"""Distributed saddle-point optimization, games and GAN training in JAX."""
