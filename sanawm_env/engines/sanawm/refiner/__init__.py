"""The refiner, stage 2: latents of one chunk to better latents of the same chunk."""
