"""Tokenizers: images to latents and back."""
