"""The processes of one run: how they find each other, check that they fit, and end together."""
