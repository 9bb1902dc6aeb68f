"""Fused Triton kernels for GPUs, their launchers, and the autograd functions around them."""
