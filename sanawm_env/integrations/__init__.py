"""Adapters for libraries with habits of their own. Each is imported by name, and only it imports its library."""
