"""Figures, targets and ratios, as a table, as JSON, and as the section of docs/benchmarks.md."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

# What a section of the page begins and ends with.
CONTAINERS = "<!-- figures -->", "<!-- end of figures -->"
MACHINES = "<!-- figures of microVMs -->", "<!-- end of figures of microVMs -->"


def seconds(value):
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def megabytes(value):
    return f"{value / 1e6:.2f} MB"


def rate(value):
    return f"{value / 1e6:.0f} MB/s"


@dataclass
class Result:
    what: str
    figures: dict = field(repr=False)
    target: str
    reached: str
    met: bool

    @classmethod
    def faster(cls, what, seen, ours, theirs, share):
        ratio = seen[theirs] / seen[ours]
        figures = {name: seconds(value) for name, value in seen.items()}
        return cls(what, figures, f"at most 1/{share} of {theirs}", f"1/{ratio:.1f}", ratio >= share)

    @classmethod
    def at_most(cls, what, seen, ours, theirs, times):
        ratio = seen[ours] / seen[theirs]
        figures = {name: seconds(seen[name]) for name in (ours, theirs)}
        return cls(what, figures, f"at most {times} x {theirs}", f"{ratio:.2f} x", ratio <= times)

    @classmethod
    def size(cls, what, seen, ours, limit):
        figures = {name: megabytes(value) for name, value in seen.items()}
        return cls(what, figures, f"at most {megabytes(limit)}", megabytes(seen[ours]), seen[ours] <= limit)

    @classmethod
    def often(cls, what, seen, ours, theirs, times, share=None):
        """`share` where turns were compared one by one."""
        ratio = share or seen[ours] / seen[theirs]
        figures = {name: f"{value:.0f} a second" for name, value in seen.items()}
        return cls(what, figures, f"at least {times} x {theirs}", f"{ratio:.2f} x", ratio >= times)

    @classmethod
    def throughput(cls, what, seen, ours, theirs, times):
        ratio = seen[ours] / seen[theirs]
        figures = {name: rate(value) for name, value in seen.items()}
        return cls(what, figures, f"at least {times} x {theirs}", f"{ratio:.1f} x", ratio >= times)


def columns(results):
    head = ["what", "target", "reached", "met", "figures"]
    body = [[r.what, r.target, r.reached, "yes" if r.met else "NO", ", ".join(f"{name} {value}" for name, value in r.figures.items())] for r in results]
    return head, body


def table(results):
    head, body = columns(results)
    widths = [max(len(row[column]) for row in [head, *body]) for column in range(len(head) - 1)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]]) for row in [head, *body]]
    return "\n" + "\n".join(lines)


def markdown(results, facts):
    head, body = columns(results)
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body]]
    machine = [f"- {name}: {value}" for name, value in facts.items()]
    return "\n".join([*lines, "", *machine])


def write_json(output, name, results, facts, raw):
    """One file for the whole, one per row with every single time."""
    whole = {"machine": facts, "results": [asdict(result) for result in results]}
    (output / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    for row, values in raw.items():
        (output / f"{row}.json").write_text(json.dumps(values, indent=1) + "\n")


def renew(page: Path, section, results, facts):
    begin, end = section
    before, rest = page.read_text().split(begin, 1)
    after = rest.split(end, 1)[1]
    page.write_text(f"{before}{begin}\n{markdown(results, facts)}\n{end}{after}")
