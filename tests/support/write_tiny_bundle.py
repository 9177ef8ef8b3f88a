"""`python -m tests.support.write_tiny_bundle FOLDER`: the tiny bundle that the C++ conformance suite runs."""

import sys

from tests.support.tiny_bundle import write_tiny_bundle

if __name__ == "__main__":
    write_tiny_bundle(sys.argv[1], experts=2, classes=3, samples_per_class=0)
