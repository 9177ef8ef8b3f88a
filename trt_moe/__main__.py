"""The command `trt-moe`, which is `python -m trt_moe` too."""

import sys


def main() -> None:
    """Entry point of the command."""
    try:
        # Imported in here, since Ctrl-C may come while that goes on.
        from trt_moe.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
