# SPDX-License-Identifier: GPL-2.0-only
"""The report as one HTML file, with everything that it shows inside of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .bench_facts import Results, Slope
from .bench_overheads import Overhead
from .bench_table import (
    OVERHEADS_HEAD,
    engine_title,
    kind_of,
    overhead_text,
    slope_text,
    summary,
    title_of,
    verdict,
)
from .bench_targets import Target, number

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; }
p.about { color: #666; margin-top: .2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 2px solid #ddd; }
td { border-bottom: 1px solid #eee; padding: .2rem .6rem .2rem 0; }
td.n { text-align: right; white-space: nowrap; }
tr.missed td, p.warning { color: #b00020; font-weight: 600; }
tr.met td.v { color: #1a7f37; } tr.unknown td { color: #888; }
tr.above td { color: #9a6700; font-weight: 600; } tr.close td.v { color: #666; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; }
"""


def page(document: Mapping[str, Any], results: Results, targets: Sequence[Target],
         slopes: Sequence[Slope], overheads: Sequence[Overhead],
         plots: Sequence[tuple[str, str]], warnings: Sequence[str] = ()) -> str:  # fmt: skip
    """Return the report as a page; *warnings* are what is wrong with all of it."""
    host = document["host"]
    about = (
        f"{document['time']}, {document['mode']} mode; kernel {document['kernel']}; "
        f"{host['cpu']}, {host['cpus']} CPUs, Linux {host['release']}, "
        f"load {host['load'][0]:.1f} at the beginning and {host['load'][1]:.1f} at the end"
    )
    parts = [
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>",
        "<title>PKSM and KSM, measured</title>",
        f"<style>{_CSS}</style></head><body>",
        f"<h1>PKSM and KSM, measured</h1><p class='about'>{escape(about)}</p>",
        *(f"<p class='warning'>{escape(warning)}</p>" for warning in warnings),
        f"<p><strong>{escape(summary(targets))}.</strong></p>",
        *(f"<figure>{_unique(name, svg)}</figure>" for name, svg in plots[:2]),
        "<h2>Targets</h2>",
        _targets(targets),
        *(f"<figure>{_unique(name, svg)}</figure>" for name, svg in plots[2:]),
        "<h2>Every result</h2>",
        "<p>Medians, with the lowest and the highest of the runs.</p>",
        _results(results),
        _overheads(overheads),
        _slopes(slopes),
        _harness(document.get("harness", {})),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _unique(name: str, svg: str) -> str:
    """Return an SVG text whose ids are no other plot's."""
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg


def _row(cells: Sequence[tuple[str, str]], kind: str = "") -> str:
    inner = "".join(f"<td class='{style}'>{escape(text)}</td>" for text, style in cells)
    return f"<tr class='{kind}'>{inner}</tr>"


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _targets(targets: Sequence[Target]) -> str:
    return _table(
        ["", "is", "to be", "", ""],
        [
            _row([(each.title, ""), (each.text, "n"), (each.bound, "n"), (verdict(each), "v"),
                  (each.note, "")], kind_of(each))
            for each in targets
        ],
    )  # fmt: skip


def _results(results: Results) -> str:
    rows = []
    for each in results.all:
        size = "" if each.mib is None else f"{each.mib} MiB"
        if each.procs is not None:
            size += f", {each.procs} processes" if size else f"{each.procs} CPUs"
        stat = each.stat
        rows.append(_row([
            (title_of(each), ""), (engine_title(each.engine), ""), (size, ""),
            (f"{number(stat.median)} {each.unit}", "n"),
            (f"{number(stat.low)} .. {number(stat.high)}", "n"), (str(stat.runs), "n"),
        ]))  # fmt: skip
    return _table(["", "engine", "size", "median", "min .. max", "runs"], rows)


def _overheads(overheads: Sequence[Overhead]) -> str:
    if not overheads:
        return ""
    rows = []
    for each in overheads:
        step, variant, *numbers = overhead_text(each)
        rows.append(_row([(step, ""), (variant, ""), *((text, "n") for text in numbers)]))
    return "<h2>The hooks</h2>" + _table(OVERHEADS_HEAD, rows)


def _slopes(slopes: Sequence[Slope]) -> str:
    if not slopes:
        return ""
    rows = [
        _row([*((text, "") for text in slope_text(each)), (f"{each.exponent:+.3f}", "n")])
        for each in slopes
    ]
    about = "<p>By which power it grows: 0 is flat, 1 is twice as much for twice the size.</p>"
    return "<h2>Scaling</h2>" + about + _table(["", "engine", "from, to", "slope"], rows)


def _harness(harness: Mapping[str, Any]) -> str:
    if not harness:
        return ""
    rows = [
        _row([(each["title"], ""), (f"{each['median']:.2f} s", "n"),
              (f"{each['min']:.2f} .. {each['max']:.2f}", "n"), (str(len(each["runs"])), "n"),
              (each["failed"], "")], "missed" if each["failed"] else "")
        for each in harness.values()
    ]  # fmt: skip
    return "<h2>The harness</h2>" + _table(["", "median", "min .. max", "runs", "failed"], rows)
