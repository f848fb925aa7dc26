"""Number formats of networks that are drawn from: applied to any parameter tree, known to no network."""
