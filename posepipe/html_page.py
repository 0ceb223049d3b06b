"""The parts of a self-contained HTML page: sections, tables, figures, pictures. Every text is escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --line: #d9dee3; --paper: #ffffff; --card: #f6f7f9; --accent: #0072B2;
  --bar: #cfe3f1; --miss: #D41159; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b0; --line: #343b43; --paper: #14181c; --card: #1d2329;
  --accent: #6db9ea; --bar: #23455c; --miss: #ff6a9e; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 1180px; padding: 1.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p, ul { margin: .4rem 0 .8rem; max-width: 72ch; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .8rem 0 0; font-size: .92rem; }
a { color: var(--accent); }
.soft, figcaption, .note { color: var(--soft); font-size: .88rem; }
.note { max-width: 90ch; }
.scroll { overflow-x: auto; max-width: 100%; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .34rem .8rem .34rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; overflow-wrap: normal; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; white-space: normal; min-width: 4.2rem; max-width: 8rem; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.text { white-space: normal; min-width: 7.5rem; max-width: 26rem; overflow-wrap: anywhere; }
td strong { font-size: 1.06rem; }
td small { display: block; color: var(--soft); font-size: .78rem; }
tr.floor td { color: var(--soft); }
figure { margin: 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); gap: 1rem; align-items: start; }
.plot { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: .6rem; }
.plot img { display: block; width: 100%; height: auto; max-width: 620px; margin: 0 auto; }
.plot figcaption { color: #5b6570; padding: .4rem .3rem .1rem; }
.cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(46%, 300px), 1fr)); gap: .8rem; }
.cases.pairs { grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.case { background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; font-size: .8rem; }
.case img, .case .blank { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #000; }
.case .blank { display: grid; place-items: center; padding: 1rem; color: #ccc; background: #333; text-align: center; }
.case figcaption { padding: .45rem .6rem .55rem; font-size: .8rem; line-height: 1.35; }
.case b { color: var(--ink); }
.pair { display: grid; grid-template-columns: 1fr 1fr; }
.film { display: flex; gap: .4rem; overflow-x: auto; padding-bottom: .4rem; max-width: 100%; }
.film figure { flex: 0 0 178px; }
.film img { display: block; width: 178px; height: 178px; object-fit: contain; border-radius: 4px; }
.film figcaption { font-size: .78rem; text-align: center; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; padding: 0; font-size: .86rem; max-width: none; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px; border: 1px solid #0005; }
.legend i.ring { background: none; border: 2px solid var(--miss); border-radius: 50%; }
.bar { background: linear-gradient(var(--bar), var(--bar)) no-repeat left / var(--share) 100%; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--accent); }
code, pre { font: .84rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
pre { background: var(--card); padding: .7rem .9rem; border-radius: 6px; }
@media (max-width: 600px) { body { padding: 1rem .8rem 3rem; font-size: 15px; } h1 { font-size: 1.4rem; } .plot { padding: .3rem; } }
"""


@dataclass(frozen=True)
class Cell:
    """One cell of a table: text, a smaller line below it, and how it looks."""

    text: str
    small: str = ""
    is_strong: bool = False
    share: float | None = None
    """0 to 1: how much of the cell is filled, as a bar."""


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole document; sections: (anchor, heading, HTML)."""
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in sections)
    bodies = "".join(f'<section id="{anchor}"><h2>{escape(heading)}</h2>{body}</section>\n' for anchor, heading, body in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # A page without an icon asks its server for one.
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n'
        f'<body><header><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p><nav>{links}</nav></header>\n{bodies}</body></html>\n'
    )


def paragraph(text: str, kind: str = "") -> str:
    return f"<p{_class(kind)}>{escape(text)}</p>"


def heading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def items(texts: Sequence[str], kind: str = "") -> str:
    return f"<ul{_class(kind)}>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>" if texts else ""


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Cell | str]], text_columns: Sequence[int] = (0,), floors: Sequence[int] = ()
) -> str:
    """A table in a box that scrolls by itself.

    Args:
        columns: headings.
        rows: cells.
        text_columns: indices of those that are prose and may wrap.
        floors: indices of the rows that are there to compare with.
    """
    head = "".join(f"<th{_class('text' if index in text_columns else '')}>{escape(name)}</th>" for index, name in enumerate(columns))
    body = ""
    for place, row in enumerate(rows):
        cells = "".join(_cell(cell, index in text_columns) for index, cell in enumerate(row))
        body += f"<tr{_class('floor' if place in floors else '')}>{cells}</tr>\n"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _cell(cell: Cell | str, is_text: bool) -> str:
    cell = Cell(cell) if isinstance(cell, str) else cell
    kinds = " ".join(["text"] * is_text + ["bar"] * (cell.share is not None))
    style = "" if cell.share is None else f' style="--share: {100 * min(1, max(0, cell.share)):.1f}%"'
    text = f"<strong>{escape(cell.text)}</strong>" if cell.is_strong else escape(cell.text)
    return f"<td{_class(kinds)}{style}>{text}{f'<small>{escape(cell.small)}</small>' if cell.small else ''}</td>"


def plots(figures: Sequence[tuple[bytes, str, str]]) -> str:
    """Figures beside one another where there is room: (PNG, what a blind reader is told, caption)."""
    return (
        '<div class="plots">'
        + "".join(
            f'<figure class="plot">{image(png, "png", text)}<figcaption>{escape(caption)}</figcaption></figure>\n'
            for png, text, caption in figures
        )
        + "</div>"
    )


def image(data: bytes, kind: str, text: str) -> str:
    """An image inside the page; kind: png or jpeg."""
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="{escape(text)}">'


def case(pictures: Sequence[tuple[bytes | None, str]], bold: str, lines: Sequence[str], link: str = "") -> str:
    """One or two pictures (JPEG, or what is said in its place) with what there is to say of them."""
    shown = "".join(
        f'<div class="blank">{escape(text)}</div>' if data is None else image(data, "jpeg", f"prediction on {text}")
        for data, text in pictures
    )
    body = f'<div class="pair">{shown}</div>' if len(pictures) > 1 else shown
    name = f'<a href="{escape(link)}">picture</a>' if link else ""
    text = "".join(f"<br>{escape(line)}" for line in lines)
    return f'<figure class="case">{body}<figcaption><b>{escape(bold)}</b>{text}{f"<br>{name}" if name else ""}</figcaption></figure>\n'


def cases(parts: Sequence[str], *, are_pairs: bool = False) -> str:
    return f'<div class="cases{" pairs" * are_pairs}">{"".join(parts)}</div>'


def film(frames: Sequence[tuple[bytes, str]]) -> str:
    """Pictures in a row that scrolls by itself: (JPEG, caption)."""
    shown = "".join(f"<figure>{image(data, 'jpeg', text)}<figcaption>{escape(text)}</figcaption></figure>" for data, text in frames)
    return f'<div class="film">{shown}</div>'


def legend(entries: Mapping[str, str]) -> str:
    """What colours mean: text -> colour, or "ring"."""
    shown = "".join(
        f'<li><i class="ring"></i>{escape(text)}</li>'
        if colour == "ring"
        else f'<li><i style="background: {colour}"></i>{escape(text)}</li>'
        for text, colour in entries.items()
    )
    return f'<ul class="legend">{shown}</ul>'


def details(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def preformatted(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def number(value: int) -> str:
    return f"{value:,}"


def count(value: int, one: str, many: str = "") -> str:
    return f"{number(value)} {one if value == 1 else many or one + 's'}"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def share_cell(count: int, total: int) -> Cell:
    return Cell(percent(count / total), share=count / total)
