"""`python -m trt_moe` is the command `trt-moe`."""

from trt_moe.cli import main

if __name__ == "__main__":
    main()
