"""What pages of the command have in common: one file that needs no other, in the colours of a job's own report.

Invariant: all that is not ours is escaped by whoever puts it in; a page has no script and asks for nothing.
"""

from collections.abc import Sequence
from html import escape
from importlib import resources

_LOOK = resources.files(__package__).joinpath("look.css").read_text(encoding="utf-8")
_STYLE = """\
main { max-width: 1080px; margin: 0 auto; padding: 36px 24px; }
h1 { font-size: 34px; line-height: 1.2; letter-spacing: -.02em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 21px; letter-spacing: -.01em; margin: 0 0 4px; }
h3 { font-size: 15px; margin: 18px 0 2px; overflow-wrap: anywhere; }
p { margin: 0; }
.muted { color: var(--muted); max-width: 85ch; overflow-wrap: anywhere; }
.answer { font-size: 18px; max-width: 75ch; margin: 16px 0 22px; overflow-wrap: anywhere; text-wrap: pretty; }
nav { margin: 0 0 22px; border-top: 1px solid var(--grid); padding-top: 10px; display: flex; flex-wrap: wrap;
  gap: 4px 18px; }
a:focus-visible, .scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
section { background: var(--card); border: 1px solid var(--grid); border-radius: 12px; padding: 22px 24px 24px;
  margin: 0 0 20px; }
.scroll { overflow-x: auto; margin-top: 12px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 18px 6px 0; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th { color: var(--muted); font-weight: 500; }
td:last-child { white-space: normal; min-width: 220px; overflow-wrap: anywhere; }
.plot { display: block; width: 100%; min-width: 600px; height: auto; }
.plot text { fill: var(--ink); font-size: 12.5px; paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.plot text.tick { fill: var(--muted); font-size: 12px; } .plot text.label { fill: var(--muted); font-size: 12.5px; }
.plot .grid { stroke: var(--grid); } .plot .axis, .plot .zero { stroke: var(--muted); }
.plot .mean { fill: none; stroke-width: 2.2; } .plot .zero { stroke-dasharray: 4 4; }
.plot .interval { stroke: var(--muted); stroke-width: 4; } .plot circle.unknown { fill: var(--muted); }
.plot .joint { stroke: var(--muted); stroke-width: 1.5; }
.plot .interval.better { stroke: var(--good); } .plot circle.better { fill: var(--good); }
.plot .interval.worse { stroke: var(--bad); } .plot circle.worse { fill: var(--bad); }
.plot .proposal { fill: none; stroke: var(--muted); opacity: .35; stroke-width: 1.5; }
.plot .proposal.best { stroke: var(--good); opacity: 1; stroke-width: 3; }
.plot .bar { fill: var(--muted); opacity: .55; } .plot .bar.told { fill: var(--v0); opacity: 1; }
.plot .chance { stroke: var(--ink); stroke-width: 2; }
@media (max-width: 600px) { main { padding: 24px 14px; } section { padding: 18px 16px; } h1 { font-size: 27px; } }
@media print { .plot { min-width: 0; } section { break-inside: avoid; } }
"""


def page(title: str, under: str, answer: str, sections: Sequence[str]) -> str:
    """The whole page.

    Args:
        title: Its name, as text.
        under: A line below it, as text.
        answer: HTML of what matters most.
        sections: As ``section`` gives them; empty ones are left out.
    """
    kept = [one for one in sections if one]
    links = [one.split('"')[1] for one in kept]
    titles = [one.split("<h2>")[1].split("</h2>")[0] for one in kept]
    nav = "".join(f'<a href="#{link}">{name}</a>' for link, name in zip(links, titles, strict=True))
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="muted">{escape(under)}</p>', answer]
    parts += [f'<nav aria-label="Parts of this page">{nav}</nav>', *kept]
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    # An icon of its own: browsers ask a server for one otherwise.
    head = f'{meta}<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{_LOOK}{_STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def section(title: str, note: str, content: str) -> str:
    """A part of the page; nothing without content, which is HTML."""
    if not content:
        return ""
    told = f'<p class="muted">{escape(note)}</p>' if note else ""
    name = title.lower().replace(" ", "-")
    return f'<section id="{escape(name)}"><h2>{escape(title)}</h2>{told}\n{content}</section>'


def table(rows: Sequence[Sequence[str]], label: str) -> str:
    """A head and rows of text; where it is wider than the page, it scrolls by itself."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    return scrolling(f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>", label)


def scrolling(content: str, label: str) -> str:
    """What may be wider than a phone; the keyboard reaches it."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{content}</div>'
