"""Conditions: the host half makes arrays of examples, the device half embeds them."""
