"""What is read and written: strangers' files, settings, whole files or none, stop signals, the terminal. It knows of no
world, and every room may use it."""
