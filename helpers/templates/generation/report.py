"""The report of a run: one HTML file that needs nothing else. The same file in every project.

The finding comes first, then what looks wrong, the scores beside those of simple baselines, the curves, what is of this
task, and the settings. Pictures are SVG, drawn here.
"""

import html
import math

import yaml

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8a8f98"  # training, validation; told apart by colour-blind readers too
STYLE = """
:root { --ink: #1d2433; --soft: #5b6475; --line: #dfe3ea; --paper: #fff; --tint: #f5f7fa; --warn: #fff4e5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ebf1; --soft: #a3acbd; --line: #353c4a; --paper: #171b23; --tint: #1f2530; --warn: #3a2c14; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3rem 1.5rem 5rem; max-width: 54rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .5rem; }
p { margin: .4rem 0 .8rem; max-width: 44rem; }
.soft, figcaption, th { color: var(--soft); }
.warn { background: var(--warn); border-left: 4px solid #d55e00; border-radius: 4px;
  padding: .8rem 1.1rem; margin: 1.25rem 0; }
.warn p { margin: .2rem 0; }
table { border-collapse: collapse; margin: .6rem 0 1rem; font-size: .92rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; }
th, td { padding: .35rem 1rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: break-word; max-width: 26rem; }
td.number, th.number { text-align: right; white-space: nowrap; }
table.matrix td { text-align: center; padding: .4rem .7rem; border: 1px solid var(--paper); }
tr.first td { font-weight: 600; }
.wide { overflow-x: auto; }
figure { margin: .5rem 0 1rem; display: inline-block; }
figure + figure { margin-left: 1.5rem; }
figcaption { font-size: .9rem; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg .axis { stroke: var(--line); }
pre { background: var(--tint); padding: 1rem 1.2rem; border-radius: 6px; overflow-x: auto; font-size: .85rem;
  line-height: 1.45; }
pre.text { white-space: pre-wrap; margin: 0; padding: .5rem .7rem; }
details summary { cursor: pointer; }
"""


def escaped(value, most=400):
    """A value as text in HTML, cut where it is very long."""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return html.escape(text if len(text) <= most else f"{text[:most]} …")


def table(header, rows, first=False):
    """Rows of values; numbers stand to the right. With `first` the first row is set off."""
    numbers = [bool(rows) and all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(header))]
    kinds = [' class="number"' if number else "" for number in numbers]
    head = "".join(f"<th{kind}>{escaped(name)}</th>" for kind, name in zip(kinds, header, strict=True))
    marks = [' class="first"' if first and not i else "" for i in range(len(rows))]
    lines = [
        f"<tr{marks[i]}>"
        + "".join(f"<td{kind}>{escaped(value)}</td>" for kind, value in zip(kinds, row, strict=True))
        + "</tr>"
        for i, row in enumerate(rows)
    ]
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def matrix(names, counts, rows_are, columns_are):
    """Counts of pairs as a shaded table: each row by its own share."""
    head = "".join(f"<th>{escaped(name, 24)}</th>" for name in names)
    lines = []
    for name, row in zip(names, counts, strict=True):
        shares = [count / max(sum(row), 1) for count in row]
        cells = "".join(
            f'<td style="background: rgba(0,114,178,{0.08 + 0.6 * share if count else 0:.2f})">{count}</td>'
            for count, share in zip(row, shares, strict=True)
        )
        lines.append(f"<tr><th>{escaped(name, 24)}</th>{cells}</tr>")
    caption = f'<p class="soft">Each line is {rows_are}, each column {columns_are}.</p>'
    body = f"<tr><th></th>{head}</tr>{''.join(lines)}"
    return f'{caption}<div class="wide"><table class="matrix">{body}</table></div>'


def picture(width, height, drawn, label, caption=""):
    """An SVG of these parts, which says what it shows."""
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    svg = f'<svg role="img" aria-label="{escaped(label)}" {size}>{"".join(drawn)}</svg>'
    return f"<figure>{svg}<figcaption>{escaped(caption)}</figcaption></figure>"


def ticks(low, high):
    """Round numbers between two, three to seven of them."""
    size = 10 ** math.floor(math.log10((high - low) / 3))
    size *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (size * factor) <= 6)
    return [size * i for i in range(math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9) + 1)]


def lines(series, x, y, low=None, high=None, diagonal=False):
    """A picture of some lines: `series` is a list of (name, colour, [(x, y), ...]); few points are drawn as such."""
    places = [place for _, _, points in series for place in points]
    if not places:
        return ""
    left, right = 0, max(place[0] for place in places)
    low = min(place[1] for place in places) if low is None else low
    high = max(place[1] for place in places) if high is None else high
    right, low, high = right or 1, low - 0.05 * (low == high), high + 0.05 * (low == high)
    width, height, margin, top = 380, 230, 46, 22

    def at(place):
        across = margin + (place[0] - left) / (right - left) * (width - margin - 14)
        up = height - 36 - (min(place[1], high) - low) / (high - low) * (height - 36 - top)
        return f"{across:.1f},{up:.1f}"

    drawn = []
    for tick in ticks(low, high):
        across, up = at((left, tick)).split(",")
        drawn.append(f'<line class="axis" x1="{across}" y1="{up}" x2="{width - 14}" y2="{up}"/>')
        drawn.append(f'<text x="{margin - 6}" y="{float(up) + 4}" text-anchor="end">{tick:.3g}</text>')
    for tick in ticks(left, right):
        across = at((tick, low)).split(",")[0]
        drawn.append(f'<text x="{across}" y="{height - 20}" text-anchor="middle">{tick:.3g}</text>')
    if diagonal:
        ends = at((max(left, low), max(left, low))), at((min(right, high), min(right, high)))
        drawn.append(f'<polyline points="{" ".join(ends)}" stroke="{GREY}" stroke-dasharray="4 4" fill="none"/>')
    legend = margin
    for name, colour, points in series:
        path = " ".join(at(point) for point in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(points) <= 30:
            for point in points:
                across, up = at(point).split(",")
                drawn.append(f'<circle cx="{across}" cy="{up}" r="3" fill="{colour}"/>')
        drawn.append(f'<rect x="{legend}" y="3" width="12" height="4" rx="2" fill="{colour}"/>')
        drawn.append(f'<text x="{legend + 17}" y="10">{escaped(name)}</text>')
        legend += 34 + 7 * len(name)
    drawn.append(f'<text x="{(margin + width) / 2}" y="{height - 4}" text-anchor="middle">{escaped(x)}</text>')
    return picture(width, height, drawn, f"{y} over {x}", y)


def bars(compared):
    """The scores with their intervals, one line a system: the point is the score, the line its interval."""
    width, step, left = 560, 30, 200
    low = min(one["low"] for one in compared.values())
    high = max(one["high"] for one in compared.values())
    low, high = (low - 0.05, high + 0.05) if high - low < 1e-6 else (low, high)

    def at(value):
        return left + (value - low) / (high - low) * (width - left - 60)

    drawn = []
    for i, (name, one) in enumerate(compared.items()):
        up, colour = 18 + i * step, BLUE if i == 0 else GREY
        drawn.append(f'<text x="{left - 14}" y="{up + 4}" text-anchor="end">{escaped(name, 28)}</text>')
        ends = f'x1="{at(one["low"]):.1f}" y1="{up}" x2="{at(one["high"]):.1f}" y2="{up}"'
        drawn.append(f'<line {ends} stroke="{colour}" stroke-width="3" stroke-linecap="round"/>')
        drawn.append(f'<circle cx="{at(one["score"]):.1f}" cy="{up}" r="5.5" fill="{colour}"/>')
        drawn.append(f'<text x="{at(one["high"]) + 10:.1f}" y="{up + 4}">{one["score"]:.3f}</text>')
    return picture(width, 14 + step * len(compared), drawn, "scores with 95 % intervals")


def scores(part, compared, metric, rows):
    """The table of the scores on a part, with its picture."""
    lines = []
    for name, one in compared.items():
        lead = ""
        if "lead" in one:
            lead = f"{100 * one['lead']:+.1f} points [{100 * one['lead_low']:+.1f}, {100 * one['lead_high']:+.1f}]"
        lines.append((name, f"{one['score']:.3f} [{one['low']:.3f}, {one['high']:.3f}]", lead))
    header = (f"{rows} {part} rows", f"{metric} [95 % interval]", "this model's lead on the same rows")
    return bars(compared) + table(header, lines, first=True)


def finding(name, compared, metric, rows):
    """The result in one sentence: the score on the test rows, and the lead over the best baseline."""
    own, *others = compared.items()
    best = max(others, key=lambda other: other[1]["score"])
    lead = best[1]["lead"]
    sure = "" if best[1]["lead_low"] > 0 or lead < 0 else ", which may be chance"
    side = "above" if lead >= 0 else "below"
    return (
        f"{name}: {metric} {own[1]['score']:.3f} on {rows} test rows, {100 * abs(lead):.1f} points {side} "
        f"the baseline \u201c{best[0]}\u201d{sure}"
    )


def curves(history, metric):
    """The losses and the validation score of the run, by epoch; what is not a number has no place in a picture."""
    losses, validated, scored = (
        [(one["epoch"], one[name]) for one in history if math.isfinite(one.get(name, math.nan))]
        for name in ("loss", "eval_loss", f"eval_{metric}")
    )
    usual = sorted(loss for _, loss in losses + validated)[: max(1, int(0.98 * len(losses + validated)))]
    high = usual[-1] if usual else None  # a spike does not flatten the rest
    pictures = lines([("training", BLUE, losses), ("validation", ORANGE, validated)], "epoch", "loss", 0, high)
    return pictures + lines([("validation", ORANGE, scored)], "epoch", metric)


def write(file, name, record, sections):
    """Writes the report of a run's record; `sections` are titles with HTML, of this task."""
    compared, metric, rows = record["baselines"], record["metric"], record["rows"]
    parts = [f"<h1>{escaped(finding(name, compared['test'], metric, rows['test']))}</h1>"]
    machine, versions = record["machine"], record["versions"]
    told = f"{rows['train']} rows to train, {rows['validation']} to validate, {rows['test']} to test; "
    told += f"{record['seconds']:.0f} s on {machine['device_name']}"
    parts.append(f'<p class="soft">{escaped(told)}</p>')
    if record["warnings"]:
        said = "".join(f"<p>{escaped(one, 2000)}</p>" for one in record["warnings"])
        parts.append(f'<div class="warn"><strong>What looks wrong</strong>{said}</div>')
    parts.append("<h2>Scores</h2>" + scores("test", compared["test"], metric, rows["test"]))
    parts.append(
        '<p class="soft">The lead is paired: both are scored on the same rows, drawn again 1,000 times. Choose '
        "settings by the validation rows, and look at the test rows once.</p>"
    )
    validation = scores("validation", compared["validation"], metric, rows["validation"])
    parts.append(f"<details><summary>On the validation rows</summary>{validation}</details>")
    parts.append(f"<h2>Training</h2>{curves(record['curve'], metric)}")
    parts += [f"<h2>{escaped(title)}</h2>{content}" for title, content in sections]
    settings = yaml.safe_dump(record["settings"], sort_keys=False, allow_unicode=True)
    parts.append(
        f"<h2>Settings</h2><details><summary>config.yaml</summary><pre>{html.escape(settings)}</pre></details>"
    )
    libraries = ", ".join(f"{library} {number}" for library, number in versions.items())
    parts.append(f'<p class="soft">Python {machine["python"]}, {escaped(libraries)}, {escaped(machine["system"])}</p>')
    view = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"<head>{view}<title>{escaped(name)}</title><style>{STYLE}</style></head>"
    page = f'<!doctype html><html lang="en">{head}<body>{"".join(parts)}</body></html>'
    file.write_text(page, encoding="utf-8", newline="\n")
