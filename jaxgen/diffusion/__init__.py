"""Diffusion: path, prediction, denoiser, guidance, solvers and the loop that runs them."""
