"""Write comparisons as one HTML page that needs nothing else: no network, no script, no MLflow.

Whatever is from a file is text: it is escaped, pictures are images of their own, and the page's
policy lets a browser load nothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

from baselines.analysis import tables
from baselines.analysis.figures import figures_of
from baselines.analysis.report import Report, Table, report_of
from baselines.experiment.ablation import configs_of
from baselines.experiment.comparison import Comparison
from baselines.experiment.kept import Kept
from baselines.training.readings import in_title
from timing.secrets import hide

# What a page begins with, by which one is known.
MARK = "<!doctype html><!-- a report of lawa-opt -->"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 62rem; margin: 1rem auto 3rem; padding: 0 1rem; }
h1 { font-size: 1.25rem; margin: 0 0 .5rem; } h2 { font-size: 1.05rem; margin: 1.4rem 0 .3rem; }
.headline { font-size: 1.1rem; background: #f2f6fa; border-left: 4px solid #0072b2;
  padding: .5rem .8rem; margin: .5rem 0; }
.headline p { margin: .15rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .22rem 1.2rem .22rem 0; border-bottom: 1px solid #ddd; }
th { vertical-align: bottom; max-width: 11rem; } td { white-space: nowrap; }
.best td { font-weight: bold; }
img { max-width: 100%; height: auto; }
.conditions { color: #444; font-size: .9rem; }
pre { background: #f5f5f5; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 700px) {
  body { font-size: 12.5px; margin: .3rem auto; padding: 0 .2rem; }
  .headline { font-size: 1.03rem; padding: .3rem .6rem; }
  th, td { padding-right: .7rem; }
}
section + section { border-top: 2px solid #ccc; margin-top: 2.5rem; padding-top: 1rem; }
"""
# What stands below the headline and its table, and what below the details.
_FIRST = ("metric-over-rst",)


def page(kept: Sequence[tuple[Kept, Comparison]]) -> str:
    """Return comparisons, each as its folder has it and with its results, as an HTML page."""
    comparisons = [comparison for _, comparison in kept]
    reports = [*map(report_of, comparisons)]
    body = "".join(_section(*each, report) for each, report in zip(kept, reports, strict=True))
    if _is_one_series(comparisons):
        body = f"<section>{_ranking(comparisons)}</section>{body}"
    return hide(
        f'{MARK}\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(reports[0].title)}</title><style>{_STYLE}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def _is_one_series(comparisons: Sequence[Comparison]) -> bool:
    """Say whether they differ in the budget alone, so that they stand beside one another."""
    plans = [comparison.plan for comparison in comparisons]
    alike = {
        (plan.workload.name, plan.names, plan.seeds, plan.policy, plan.free, plan.read)
        for plan in plans
    }
    budgets = {plan.budget.seconds for plan in plans}
    return len(alike) == 1 and len(plans) == len(budgets) > 1 and not configs_of(plans[0])


def _ranking(comparisons: Sequence[Comparison]) -> str:
    plan = comparisons[0].plan
    name = "How the ranking moves with the budget: the end (rank)"
    return "".join(
        _table(
            Table(f"{name}{in_title(reading)}{plan.but_free}", tables.ranking(comparisons, reading))
        )
        for reading in plan.read
    )


def _section(kept: Kept, comparison: Comparison, report: Report) -> str:
    figures = figures_of(comparison)
    first = {name: figure for name, figure in figures.items() if name in _FIRST}
    rest = {name: figure for name, figure in figures.items() if name not in first}
    details = "".join(map(_table, report.details))
    # The only one is that of which the heading is.
    tables_ = "".join(_table(each, titled=len(report.tables) > 1) for each in report.tables)
    return (
        f"<section><h1>{escape(report.title)}</h1>{_headline(report)}"
        f"{tables_}{_pictures(first)}"
        f"{_sentences(report)}{details}{_pictures(rest)}"
        f'<h2>Conditions</h2><p class="conditions">{escape(report.conditions)}</p>'
        f"{_how_to_repeat(kept)}</section>"
    )


def _headline(report: Report) -> str:
    lines = "".join(f"<p>{escape(sentence)}</p>" for sentence in report.headline)
    return f'<div class="headline">{lines}</div>'


def _sentences(report: Report) -> str:
    if not report.sentences:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in report.sentences)
    return f"<h2>What the intervals show</h2><ul>{items}</ul>"


def _table(table: Table, *, titled: bool = True) -> str:
    head, *body = table.rows
    best = body[0] if table.best_first else None
    lines = [
        ('<tr class="best">' if row is best else "<tr>")
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in body
    ]
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    return (
        f"{f'<h2>{escape(table.title)}</h2>' if titled else ''}"
        '<div class="scroll"><table>'
        f"<thead><tr>{names}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _pictures(figures: dict[str, Figure]) -> str:
    """Return pictures, each an image that can neither run nor load anything."""
    return "".join(
        f'<p><img alt="{escape(name)}: its numbers are in the tables" '
        f'src="data:image/svg+xml;base64,{base64.b64encode(_svg(figure)).decode()}"></p>'
        for name, figure in figures.items()
    )


def _svg(figure: Figure) -> bytes:
    """Return a picture as SVG, the same bytes each time."""
    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "lawa-opt"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _how_to_repeat(kept: Kept) -> str:
    manifest = kept.manifest
    about = [
        f"torch {manifest.torch}, lawa-opt {manifest.lawa_opt}, {manifest.threads} thread(s)",
        *(f"{name}: {value}" for name, value in manifest.data.items()),
        *(f"{file}: SHA-256 {digest}" for file, digest in manifest.files_sha256.items()),
        f"profile measured {kept.profile.created:%Y-%m-%d %H:%M %Z} on {kept.profile.machine}",
    ]
    items = "".join(f"<li>{escape(each)}</li>" for each in about)
    return (
        f"<h2>To repeat it</h2><pre>{escape(manifest.command or 'the command is not known')}</pre>"
        f'<ul class="conditions">{items}</ul>'
    )
