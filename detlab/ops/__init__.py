"""Geometry and kernels: pure array functions on one image, jit-compiled with static shapes."""
