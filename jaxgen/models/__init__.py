"""Generator networks, one a file; a config names one by its module."""
