"""A router behind HTTP: image files, the Open Inference Protocol, health, and metrics for Prometheus."""
