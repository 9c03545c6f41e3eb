"""The networks and the mathematics of diffusion.

Shapes, throughout the package:
    B batch · T samples · S frames · D width · K tokens · C token width · N image codes · V codebook ·
    E teacher embedding · H, W picture sides · L text pieces. `*_mask` is True where valid.
"""
