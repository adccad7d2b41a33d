"""The whole page of a run."""

from __future__ import annotations

from cxrjax.report import certainty, doubts, performance, protocol
from cxrjax.report import elements as e
from cxrjax.report.files import Found

_SECTIONS = (
    performance.metrics,
    performance.classes,
    performance.confusion,
    doubts.audit,
    certainty.section,
    performance.curves,
    doubts.images,
    doubts.explanations,
    protocol.data,
    protocol.machine,
)
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #595959; --line: #cfcfcf;
  --ground: #fff; --raised: #f4f5f6; --doubt: #a33d00; --sound: #00664b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --soft: #a8a8a8; --line: #44484d;
  --ground: #15181b; --raised: #202428; --doubt: #ff9d5c; --sound: #4fd0a6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 60rem; margin: auto; padding: 1rem; }
h1 { line-height: 1.2; margin: .5rem 0; }
h2 { margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line); }
h3 { margin: 1.5rem 0 .25rem; }
small, .range, figcaption, .missing { color: var(--soft); }
small { font-size: .8em; }
a { color: inherit; }
#verdict { background: var(--raised); border-left: .4rem solid var(--doubt);
  padding: .25rem 1rem; margin: 1rem 0; }
#verdict.sound { border-color: var(--sound); }
.line { font-size: 1.15em; }
.warning { color: var(--doubt); }
.missing { border-left: .2rem solid var(--line); padding-left: .75rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .25rem;
  max-width: calc(100vw - 2rem); }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: normal; }
th { font-weight: 600; }
th[scope=row] { font-weight: 400; min-width: 7rem; }
.range, td small { white-space: nowrap; }
.dense .range { display: block; }
.matrix td { padding: .25rem .75rem; text-align: right; }
.matrix td, .matrix th[scope=col] + th { border-left: 1px solid var(--line);
  padding-left: .5rem; }
.facts td { overflow-wrap: anywhere; min-width: 9rem; }
figure { margin: 1.5rem 0; }
img { display: block; max-width: 100%; height: auto; background: #fff; }
code, pre { font: .85em/1.5 ui-monospace, monospace; background: var(--raised); }
code { padding: .1em .3em; }
pre { padding: .75rem; white-space: pre-wrap; }
footer { margin: 3rem 0 1rem; border-top: 1px solid var(--line); }
@media (max-width: 40rem) { td .range, td small { display: block; }
  td, th { font-size: .9rem; padding-right: .5rem; } th[scope=row] { min-width: 5rem; }
  figure { overflow-x: auto; } img { max-width: none; width: 40rem; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb;
  --ground: #fff; --raised: #f4f4f4; --doubt: #a33d00; --sound: #00664b; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; }
  .table { overflow: visible; } figure, .table, tr, #verdict { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; } img { max-height: 23cm; width: auto; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
_WARNING = "Not a medical device: nothing here may be used to diagnose anybody."


def make(found: Found) -> str:
    """The HTML of a run's page.

    Raises:
      KeyError, TypeError, ...: where the files hold something else than a run writes.
    """
    result, name = found.result, found.folder.resolve().name
    classes = ", ".join(result["classes"])
    return e.document(
        f"{name}: cxrjax report",
        _STYLE,
        e.tag("h1", name),
        e.paragraph(f"{result.get('model', 'network')} on {result.get('task', 'data')}: {classes}"),
        performance.verdict_box(found),
        *(section(found) for section in _SECTIONS),
        e.tag("footer", e.paragraph(e.tag("strong", _WARNING))),
    )
