"""An evaluation as tables for people."""

from __future__ import annotations

from typing import Any

from trt_moe.bundle.manifest import MIXTURE
from trt_moe.console import by_mirror, milliseconds, percent, points, print_table, routing_rule, stdout
from trt_moe.evaluation.evaluate import BASELINE_CASCADE, CASCADE, IMAGE_CUE, ORACLE, RANDOM, VERIFY

_UNLIKE = 0.1
"""Difference of mean latencies from which on the timed images are told to be unlike all of them."""
_MATRIX_CLASSES = 20
"""The most whose confusion is a matrix."""


def print_report(data: dict[str, Any]) -> None:
    """Print what `evaluate` returned: severities, strategies, frontier, remarks."""
    out = stdout()
    out.print(
        f"{data['bundle']} on {data['device']}, experts in {data['precision']}, "
        f"{routing_rule(data['latency_weight'], data['verify_below'], data['verify_by'])}; "
        f"{data['dataset']}, {data['images']:,} images under {corruption(data)}"
    )
    print_shares(data)
    print_accuracies(data)
    print_strategies(data)
    print_frontier(data)
    _print_remarks(data)


def corruption(data: dict[str, Any]) -> str:
    """What the images were corrupted by, in words."""
    kind = data["corruption"]
    return {"both": "blur and noise", "own": "their own corruption"}.get(kind, f"{kind} alone")


def print_shares(data: dict[str, Any]) -> None:
    """One column for each severity, however many experts there are: shares and the mixture's latency."""
    levels = data["severities"]
    rows = [
        *([f"share {name} %", *(points(row["share"][name]) for row in levels.values())] for name in data["experts"]),
        ["seen twice %", *(points(row["passed_on"]) for row in levels.values())],
        ["mean ms", *(milliseconds(row["mean_ms"]) for row in levels.values())],
        ["p99 ms", *(milliseconds(row["p99_ms"]) for row in levels.values())],
    ]
    print_table("by severity: where images go, and the mixture's latency", ["severity", *levels], rows)


def print_accuracies(data: dict[str, Any]) -> None:
    """One row for each strategy, one column for each severity."""
    levels = data["severities"]
    rivals = {RANDOM: "random", IMAGE_CUE: "image cue", CASCADE: "cascade", VERIFY: "verified", ORACLE: "oracle"}
    rows = [
        [MIXTURE, *(points(row["accuracy"]) for row in levels.values())],
        *([name, *(points(row["experts"][name]) for row in levels.values())] for name in data["experts"]),
        *([name, *(points(row["baselines"][name]) for row in levels.values())] for name in data["baselines"]),
        *([label, *(points(row[name]) for row in levels.values())] for name, label in rivals.items()),
    ]
    print_table("by severity: who is right, in %", ["severity", *levels], rows)


def cascade_name(row: dict[str, Any]) -> str:
    """A cascade of the report in words."""
    return f"cascade from {row['cheaper']}{by_mirror(row['verify_by'])}"


def print_strategies(data: dict[str, Any]) -> None:
    """One row for each way to choose an expert, over all severities."""
    overall = data["overall"]
    dearest_ms = overall[data["experts"][-1]]["mean_ms"]
    labels = {MIXTURE: "mixture (gater and experts)"}
    labels |= {name: f"always {name}" for name in data["experts"]}
    labels |= {name: f"always {name} (baseline)" for name in data["baselines"]}
    labels |= {
        RANDOM: "random experts, same latency",
        IMAGE_CUE: f"Laplacian variance picks {overall[IMAGE_CUE]['cheaper']} or dearest, same latency",
        **{
            key: f"confidence {cascade_name(overall[key])}, same latency"
            for key in (CASCADE, BASELINE_CASCADE)
            if key in overall
        },
        VERIFY: "gate, then verify, same latency",
        ORACLE: "oracle (knows the answer)",
    }
    rows = [
        [
            labels[name],
            points(row["accuracy"]),
            milliseconds(row["mean_ms"]),
            milliseconds(row["p50_ms"]) if "p50_ms" in row else "-",
            milliseconds(row["p99_ms"]) if "p99_ms" in row else "-",
            points(row["mean_ms"] / dearest_ms),
        ]
        for name, row in overall.items()
    ]
    columns = ["strategy", "accuracy %", "mean ms", "p50 ms", "p99 ms", "% of dearest"]
    print_table("strategies over all severities", columns, rows)


def print_frontier(data: dict[str, Any]) -> None:
    """The mixture at other latency weights, and with the best of both settings."""
    experts = data["experts"]
    dearest_ms = data["overall"][experts[-1]]["mean_ms"]
    rows = [
        [
            f"{point['latency_weight']:.3g}",
            points(point["accuracy"]),
            milliseconds(point["mean_ms"]),
            points(point["mean_ms"] / dearest_ms),
            *(points(point["share"][name]) for name in experts),
        ]
        for point in data["frontier"]
    ]
    columns = ["latency weight", "accuracy %", "mean ms", "% of dearest"]
    columns += [f"share {name} %" for name in experts]
    print_table("frontier (router.latency_weight swept; latency from the measured parts)", columns, rows)
    rows = [
        [
            f"{point['latency_weight']:.3g}",
            f"{point['verify_below']:.3g}",
            points(point["accuracy"]),
            milliseconds(point["mean_ms"]),
            points(point["mean_ms"] / dearest_ms),
        ]
        for point in data["verified_frontier"]
    ]
    columns = ["latency weight", "verify below", "accuracy %", "mean ms", "% of dearest"]
    print_table("frontier, verified (router.verify_below set as well; picked on these images)", columns, rows)


def _print_remarks(data: dict[str, Any]) -> None:
    out = stdout()
    mixture = data["overall"][MIXTURE]
    # The rest of measured means: where there is little of it, noise on either side of 0.
    overhead = f"{milliseconds(mixture['overhead_ms'])} ms" if mixture["overhead_ms"] > 0 else "too little to tell"
    out.print(
        f"Latencies: {data['latency_images']:,} single images, mixture and models in turn. The mixture's "
        f"include the gater ({milliseconds(mixture['gater_ms'])} ms) and all overhead "
        f"({overhead}); the models' are bare inference."
    )
    same = f"The same latency is {milliseconds(mixture['modelled_ms'])} ms, the mixture's over all images"
    if abs(mixture["modelled_ms"] / mixture["mean_ms"] - 1) > _UNLIKE:
        same += (
            f"; those that were timed, {milliseconds(mixture['mean_ms'])} ms on average, do not stand for them: time "
            "more (--latency-images)"
        )
    out.print(f"{same}.")
    near = data["near_dearest"]
    if near is not None and near["of_dearest"] >= 1:
        out.print(f"No setting within half a point of always {data['experts'][-1]} measured faster.")
    elif near is not None:
        out.print(
            f"Within half a point of always {data['experts'][-1]}: "
            f"{routing_rule(near['latency_weight'], near['verify_below'], data['verify_by'])}, "
            f"{percent(near['accuracy'])} at {percent(near['of_dearest'])} of its mean latency, measured."
        )
    if data["oracle_gain"] is not None:
        out.print(
            "Of the oracle's gain over the best single expert the mixture captures "
            f"{percent(data['oracle_gain'])} at this latency weight"
            f"{'' if data['oracle_gain'] >= 0 else ' (the best single expert is more accurate)'}."
        )
    out.print(f"Calibration error of the mixture (15 bins): {percent(mixture['ece'])}.")
    if data["disagreements"]:
        out.print(
            f"{data['disagreements']} images were answered otherwise alone than in a batch; expected none. "
            "Try --precision fp32, and report it.",
            style="bold red",
        )


def print_confusion(data: dict[str, Any]) -> None:
    """Rows are the truth, columns the mixture's answers; of many classes, only the pairs that occur."""
    names = data["classes"]
    if len(names) > _MATRIX_CLASSES:
        pairs = [[pair["truth"], pair["answer"], pair["images"]] for pair in data["confusion"]]
        print_table("confusion of the mixture", ["truth", "answer", "images"], pairs)
        return
    images = {(pair["truth"], pair["answer"]): pair["images"] for pair in data["confusion"]}
    rows = [[truth, *(images.get((truth, answer), 0) for answer in names)] for truth in names]
    print_table("confusion of the mixture (rows: truth)", ["class", *names], rows)
