"""An evaluation as one HTML file that needs nothing else: tables, box plots (inline SVG), images, differences."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from html import escape
from pathlib import Path

import cv2
import numpy as np

from ddfm.colour import luma
from ddfm.evaluation.evaluate import Evaluation, Scene, shown
from ddfm.evaluation.metrics import LOWER_IS_BETTER
from ddfm.io import images

# Okabe and Ito's colours, told apart by the colour-blind; baselines are grey so that methods stand out.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_GREY = "#8a8f98"
_LONGEST_SIDE = 1600  # larger images are shrunk, or a few of them make a file that no browser likes

_STYLE = """
:root { --ink:#1c2127; --soft:#646c78; --line:#e3e6ea; --paper:#fff; --tint:#f6f7f9; --accent:#0072b2 }
@media (prefers-color-scheme: dark) {
  :root { --ink:#e6e8eb; --soft:#9aa2ad; --line:#30363f; --paper:#14171b; --tint:#1c2026; --accent:#56b4e9 } }
* { box-sizing:border-box }
body { margin:0 auto; max-width:1400px; padding:2.2rem 1.4rem 4rem; background:var(--paper); color:var(--ink);
  font:15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size:1.7rem; margin:0 0 .2rem; letter-spacing:-.01em } h2 { font-size:1.15rem; margin:2.4rem 0 .5rem }
h3 { font-size:1rem; margin:1.6rem 0 .4rem } p { margin:.3rem 0 .7rem; max-width:75ch } .soft { color:var(--soft) }
.scroll { overflow-x:auto } table { border-collapse:collapse; font-variant-numeric:tabular-nums; font-size:.88rem }
th, td { padding:.38rem .55rem; text-align:right; border-bottom:1px solid var(--line); white-space:nowrap }
th { font-weight:600; color:var(--soft); border-bottom-width:2px } th:first-child, td:first-child { text-align:left }
tbody tr:hover { background:var(--tint) } td small { color:var(--soft); display:block; line-height:1.1 }
.best { font-weight:700 } .second { text-decoration:underline; text-underline-offset:3px }
.published td { font-style:italic; color:var(--soft) } .clear { font-weight:600 }
.published td:first-child { white-space:normal } .wins { color:#c0392b; font-weight:600 }
.dot { display:inline-block; width:.68rem; height:.68rem; border-radius:50%; margin-right:.5rem }
.plots { display:grid; grid-template-columns:repeat(auto-fill, minmax(340px, 1fr)); gap:.9rem }
.plots figure { margin:0; padding:.6rem .8rem .2rem; border:1px solid var(--line); border-radius:8px }
.plots figcaption { font-weight:600; font-size:.9rem } svg { width:100%; height:auto; display:block }
svg text { font:11px system-ui, sans-serif; fill:var(--soft) } svg .axis { stroke:var(--line) }
.row { display:flex; flex-wrap:wrap; gap:.7rem; padding-bottom:.7rem }
.row figure { margin:0 } .row img { height:170px; max-width:100%; display:block; border-radius:4px; cursor:zoom-in }
.row.small img { height:95px } .row figcaption { font-size:.8rem; color:var(--soft); margin-top:.2rem }
dialog { border:0; padding:0; background:transparent; max-width:none; max-height:none; width:100vw; height:100vh }
dialog::backdrop { background:#000d }
dialog div { width:100%; height:100%; display:flex; flex-direction:column; align-items:center; justify-content:center;
  gap:.6rem; color:#fff; cursor:zoom-out; overflow:auto }
dialog img { max-width:96vw; max-height:90vh; min-width:min(60vw, 900px); object-fit:contain }
"""

_SCRIPT = """
const box = document.querySelector('dialog'), big = box.querySelector('img'), label = box.querySelector('span');
let shots = [], at = 0;
const show = i => {
  at = (i + shots.length) % shots.length; big.src = shots[at].src; label.textContent = shots[at].alt };
document.querySelectorAll('.row img').forEach(img => img.addEventListener('click', () => {
  shots = [...img.closest('section').querySelectorAll('img')]; show(shots.indexOf(img)); box.showModal() }));
box.addEventListener('click', () => box.close());
box.addEventListener('keydown', e => {
  if (e.key === 'ArrowRight') show(at + 1); if (e.key === 'ArrowLeft') show(at - 1) });
"""


def write_html(evaluation: Evaluation, path: Path, title: str = "Image fusion report") -> None:
    """Write the report of an evaluation to an HTML file with everything in it; InputError where it cannot be written.

    The images are those of `evaluation.scenes`, as JPEG of quality 90; click one for full size, then flip through
    its scene with the arrow keys.
    """
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=soft>{escape(evaluation.caption())}. Sources: {escape(', '.join(evaluation.sources))}.</p>",
        _summary(evaluation),
        _pictures(evaluation),
        _baselines(evaluation),
        _differences(evaluation),
        "<h2>Spread over the images</h2><p class=soft>Box: quartiles and median. Whiskers: the farthest image within"
        " 1.5 boxes. Dots: the images beyond.</p>",
        f"<div class=plots>{''.join(_box_plot(evaluation, k) for k in range(len(evaluation.metrics)))}</div>",
        _left_out(evaluation),
        "<dialog><div><img alt=''><span></span></div></dialog>",
    ]
    page = (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(body)}"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )
    images.write_bytes(path, page.encode())


def _summary(evaluation: Evaluation) -> str:
    mean, std, ranks, seconds = (
        evaluation.mean(),
        evaluation.std(),
        evaluation.ranks(),
        evaluation.median_seconds(),
    )
    head = ["method", *map(_arrow, evaluation.metrics), "rank", *(["s / pair"] if seconds else [])]
    rows = []
    for i, method in enumerate(evaluation.methods):
        cells = [f"<td>{_dot(evaluation, method)}{escape(method)}</td>"]
        for m, s, rank in zip(mean[i], std[i], ranks[i], strict=True):
            kind = {1.0: " class=best", 2.0: " class=second"}.get(rank, "")
            spread = "" if math.isnan(s) else f"<small>± {shown(s)}</small>"
            cells.append(f"<td><span{kind}>{shown(m)}</span>{spread}</td>")
        known = ranks[i][~np.isnan(ranks[i])]
        cells.append(f"<td>{shown(known.mean()) if len(known) else '–'}</td>")
        if seconds:
            cells.append(f"<td>{seconds[method]:.3g}</td>" if method in seconds else "<td></td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    for label, row in evaluation.published.items():
        values = "".join(f"<td>{shown(row[m]) if m in row else ''}</td>" for m in evaluation.metrics)
        rows.append(f"<tr class=published><td>{escape(label)}</td>{values}<td></td>{'<td></td>' * bool(seconds)}</tr>")
    return (
        "<h2>Means over the images</h2><p class=soft>Mean and standard deviation; <b>best</b>, <u>second</u>; the arrow"
        " points to better. Rank: mean of the ranks over the metrics.</p>" + _table(head, rows)
    )


def _baselines(evaluation: Evaluation) -> str:
    notes = evaluation.baseline_notes()
    if not notes:
        return ""
    methods = list(dict.fromkeys(note.method for note in notes))
    cells = {(note.metric, note.method): note for note in notes}
    rows = []
    for metric in evaluation.metrics:
        row = [f"<td>{escape(_arrow(metric))}</td>"]
        for method in methods:
            note = cells.get((metric, method))
            if note is None:
                row.append("<td>–</td>")
                continue
            kind, verb = (" class=wins", "wins") if note.baseline_wins else ("", "is nearest")
            verb = "is equal" if note.baseline_mean == note.method_mean else verb
            row.append(
                f"<td><span{kind}>{escape(note.baseline)} {verb}</span>"
                f"<small>{shown(note.baseline_mean)} against {shown(note.method_mean)}</small></td>"
            )
        rows.append(f"<tr>{''.join(row)}</tr>")
    return (
        "<h2>Against the simple baselines</h2><p class=soft>For each metric, the baseline with the best mean. A metric"
        " that a baseline wins rewards something simple, and says little about a method.</p>"
        + _table(["metric", *methods], rows)
    )


def _differences(evaluation: Evaluation) -> str:
    first, *others = evaluation.methods
    if not others or len(evaluation.images) < 2:
        return ""
    compared = {other: evaluation.compare(first, other) for other in others}
    rows = []
    for k, metric in enumerate(evaluation.metrics):
        row = [f"<td>{escape(_arrow(metric))}</td>"]
        for other in others:
            d = compared[other][k]
            kind = " class=clear" if d.is_clear else " class=soft"
            row.append(
                f"<td><span{kind}>{_signed(d.mean)}</span><small>{_signed(d.low)} … {_signed(d.high)}</small></td>"
            )
        rows.append(f"<tr>{''.join(row)}</tr>")
    return (
        f"<h2>Paired differences: {escape(first)} minus each other</h2><p class=soft>Mean difference over the images"
        " and its 95 % bootstrap interval; in bold where the interval leaves out zero.</p>"
        + _table(["metric", *others], rows)
    )


def _box_plot(evaluation: Evaluation, k: int) -> str:
    """Horizontal boxes, one method a row, for metric k."""
    width, left, right, line, top = 420, 122, 10, 20, 6
    series = [row[np.isfinite(row)] for row in evaluation.values[:, :, k]]
    every = np.concatenate(series)
    if not len(every):
        return ""
    low, high = float(every.min()), float(every.max())
    if high == low:
        low, high = low - 0.5, high + 0.5
    bottom = top + line * len(series)

    def x(value: float) -> float:
        return round(left + (value - low) / (high - low) * (width - left - right - 8) + 4, 1)

    parts = []
    for tick in (low, (low + high) / 2, high):
        anchor = "start" if tick == low else "end" if tick == high else "middle"
        parts.append(f"<line class=axis x1={x(tick)} x2={x(tick)} y1={top} y2={bottom} />")
        parts.append(f"<text x={x(tick)} y={bottom + 14} text-anchor={anchor}>{shown(tick)}</text>")
    for i, (method, values) in enumerate(zip(evaluation.methods, series, strict=True)):
        y, colour = top + line * i + line / 2, _colour(evaluation, method)
        name = method if len(method) <= 19 else method[:18] + "…"
        parts.append(f"<text x={left - 8} y={y + 4} text-anchor=end>{escape(name)}</text>")
        if not len(values):
            continue
        q1, median, q3 = np.percentile(values, (25, 50, 75))
        inside = values[(values >= q1 - 1.5 * (q3 - q1)) & (values <= q3 + 1.5 * (q3 - q1))]
        tip = f"{method}: median {shown(median)}, quartiles {shown(q1)} and {shown(q3)}"
        parts.append(
            f"<g stroke='{colour}' fill='{colour}'><title>{escape(tip)}</title>"
            f"<line x1={x(inside.min())} x2={x(inside.max())} y1={y} y2={y} />"
            f"<rect x={x(q1)} y={y - 6} width={max(x(q3) - x(q1), 1):.1f} height=12 fill-opacity=.28 rx=2 />"
            f"<line x1={x(median)} x2={x(median)} y1={y - 6} y2={y + 6} stroke-width=2.5 />"
        )
        beyond = values[(values < inside.min()) | (values > inside.max())]
        parts += [f"<circle cx={x(value)} cy={y} r=2 stroke=none />" for value in beyond]
        parts.append("</g>")
    return (
        f"<figure><figcaption>{escape(_arrow(evaluation.metrics[k]))}</figcaption>"
        f"<svg viewBox='0 0 {width} {bottom + 20}' role=img>{''.join(parts)}</svg></figure>"
    )


def _pictures(evaluation: Evaluation) -> str:
    if not evaluation.scenes:
        return ""
    text = (
        "<h2>Images</h2><p class=soft>Below each scene, fused minus source in luma: red where the fused image is"
        " brighter, blue where it is darker. Click for full size; the arrow keys flip through the scene.</p>"
    )
    if len(evaluation.scenes) < len(evaluation.images):
        text += f"<p class=soft>{len(evaluation.scenes)} of {len(evaluation.images)} images are shown.</p>"
    return text + "".join(map(_scene, evaluation.scenes))


def _scene(scene: Scene) -> str:
    pictures = {f"{name} (source)": picture for name, picture in scene.sources.items()} | scene.fused
    differences = {
        f"{method} − {source}": _difference(fused, original)
        for method, fused in scene.fused.items()
        for source, original in scene.sources.items()
    }
    return (
        f"<section><h3>{escape(scene.name)}</h3>"
        f"<div class=row>{''.join(_figure(scene.name, *item) for item in pictures.items())}</div>"
        f"<div class='row small'>{''.join(_figure(scene.name, *item) for item in differences.items())}</div></section>"
    )


def _figure(scene: str, name: str, picture: np.ndarray) -> str:
    image = f'<img loading=lazy src="{_data_uri(picture)}" alt="{escape(f"{scene}: {name}")}">'
    return f"<figure>{image}<figcaption>{escape(name)}</figcaption></figure>"


def _difference(fused: np.ndarray, source: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): white where equal, red where fused is brighter, blue where darker."""
    signed = luma(fused / np.float32(255)) - luma(source / np.float32(255))
    up, down = signed.clip(0, 1), (-signed).clip(0, 1)
    rgb = np.stack([1 - down, 1 - np.maximum(up, down), 1 - up], axis=-1)
    return np.rint(255 * rgb).astype(np.uint8)


def _data_uri(picture: np.ndarray) -> str:
    scale = _LONGEST_SIDE / max(picture.shape[:2])
    if scale < 1:
        size = [max(1, round(n * scale)) for n in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    ok, data = cv2.imencode(
        ".jpg", picture[..., ::-1] if picture.ndim == 3 else picture, [cv2.IMWRITE_JPEG_QUALITY, 90]
    )
    assert ok, "OpenCV writes every 8-bit array as JPEG"
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _left_out(evaluation: Evaluation) -> str:
    if not evaluation.unmatched:
        return ""
    items = "".join(f"<li>{escape(str(path))}</li>" for path in evaluation.unmatched[:200])
    return (
        f"<h2>Unmatched</h2><details><summary>{len(evaluation.unmatched)} files that not every folder has</summary>"
        f"<ul>{items}</ul></details>"
    )


def _table(head: Iterable[str], rows: Iterable[str]) -> str:
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f"<div class=scroll><table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _arrow(metric: str) -> str:
    return f"{metric} {'↓' if metric in LOWER_IS_BETTER else '↑'}"


def _signed(x: float) -> str:
    return ("+" if x > 0 else "") + shown(x)


def _colour(evaluation: Evaluation, method: str) -> str:
    if method in evaluation.baselines:
        return _GREY
    ours = [name for name in evaluation.methods if name not in evaluation.baselines]
    return _COLOURS[ours.index(method) % len(_COLOURS)]


def _dot(evaluation: Evaluation, method: str) -> str:
    return f"<span class=dot style='background:{_colour(evaluation, method)}'></span>"
