"""Weights and loops of other libraries.

diffusers, guided-diffusion, denoising-diffusion-pytorch.
"""
