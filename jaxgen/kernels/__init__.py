"""Hot paths written by hand, each beside its plain form with the same signature."""
