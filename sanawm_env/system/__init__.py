"""Files of unknown origin, settings, atomic writing, signals and the terminal. Every room may use this one; it knows
no other."""
