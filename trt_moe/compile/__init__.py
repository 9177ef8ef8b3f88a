"""Compiling a bundle's models into TensorRT engines, and the cache that keeps them."""
