"""Runs every benchmark on a shipped bundle and writes one JSON file and a Markdown table.

python -m benchmarks [--bundle fashion-mnist] [--out benchmarks/results] [--quick] [--only overhead,peers,...]
                     [--name results]
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks import concurrency, deadline, in_flight, int8, memory, overhead, peers, serving
from benchmarks.common import environment, load_mixed_images
from trt_moe import Bundle

BENCHMARKS = {
    "overhead": overhead,
    "peers": peers,
    "concurrency": concurrency,
    "in_flight": in_flight,
    "deadline": deadline,
    "serving": serving,
    "memory": memory,
    "int8": int8,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--bundle", default="fashion-mnist")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds, to see that everything runs")
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="comma-separated, of: " + ", ".join(BENCHMARKS))
    parser.add_argument("--name", default="results", help="of the two files")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark {unknown[0]!r}; choose from {', '.join(BENCHMARKS)}")
    bundle = Bundle.load(options.bundle)
    images = load_mixed_images(bundle)
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"command": "python -m benchmarks " + " ".join(sys.argv[1:]), "environment": environment(bundle)}
    tables = []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        report[name] = BENCHMARKS[name].run(bundle, images, quick=options.quick)
        tables.append(f"### {BENCHMARKS[name].TITLE}\n\n{BENCHMARKS[name].table(report[name])}\n")
        print(tables[-1], flush=True)
    (options.out / f"{options.name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / f"{options.name}.md").write_text("\n".join(tables))


if __name__ == "__main__":
    main()
