"""Fused GPU kernels, written in Triton, and how autograd calls them."""
