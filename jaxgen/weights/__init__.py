"""Name maps between published checkpoints and parameter trees."""
