"""Adapters for other libraries. Each is imported by its own name, and imports its library."""
