"""How well a video follows its commanded camera, and how well it lasts: the numbers of SANA-WM-Bench.

`pose` has rotation, translation and camera-motion errors, `image` PSNR and SSIM, `benchmark` revisits and the
aggregation of scores, `lasting` drift and loop closure.
"""
