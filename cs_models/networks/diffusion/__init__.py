"""Diffusion models, fine-tuned or sampled from, and the invertible wiring that trains them in little memory."""
