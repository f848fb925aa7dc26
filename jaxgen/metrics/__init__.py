"""What a set of pictures is worth: numbers computed from pictures alone."""
