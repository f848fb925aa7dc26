"""Feature networks: frozen ones, and small ones that train with their generator."""
