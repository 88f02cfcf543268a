"""How well a video follows its commanded camera, and how well it lasts: the numbers of SANA-WM-Bench.

`pose` rotation, translation and camera-motion errors; `image` PSNR and SSIM; `benchmark` revisits, score aggregation.
"""
