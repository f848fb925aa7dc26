"""Sampling by autoregression: orders in which tokens are decoded, and how one is chosen."""
