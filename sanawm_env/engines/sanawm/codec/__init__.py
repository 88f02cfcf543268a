"""Codecs: frames to latents and back."""
