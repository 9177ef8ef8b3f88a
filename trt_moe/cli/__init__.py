"""The command `trt-moe`: parsing only, what the verbs do lies in the modules that they import when called."""

from trt_moe.cli.app import app, main

__all__ = ["app", "main"]
