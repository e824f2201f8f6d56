"""Tables as Markdown, LaTeX and HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from dsfer.figures import data_uri
from dsfer.files import write_bytes
from pipeline.pages import draw_page
from pipeline.sheets import Sheet

TEX = str.maketrans(
    {
        "±": r"$\pm$", "−": "$-$", "—": "---", "–": "--", "Δ": r"$\Delta$", "λ": r"$\lambda$",
        "†": r"\dag{}", "…": r"\ldots{}",
    }
)  # fmt: skip
"""Signs that LaTeX's own fonts know by other names."""

TEX_SPECIAL = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)
"""Signs that mean something to LaTeX; in cells, pandas escapes them."""

TEX_PACKAGES = "% For \\input. Needs \\usepackage{booktabs,adjustbox,graphicx}."

TEX_TABLE = r"""
\begin{{table*}}
\centering
\caption{{{caption}}}
\label{{tab:{key}}}
\begin{{adjustbox}}{{max width=\textwidth}}
{tabular}\end{{adjustbox}}
{notes}\end{{table*}}
"""

TEX_FIGURE = r"""
\begin{{figure}}
\centering
\includegraphics[width=\linewidth]{{{picture}.pdf}}
\caption{{F1 over the weight of deep supervision.}}
\label{{fig:{picture}}}
\end{{figure}}
"""


KINDS = {".svg": "image/svg+xml", ".png": "image/png"}
"""Media types of pictures that pages hold."""


@dataclass(frozen=True)
class Picture:
    """A picture below the tables of a page.

    Attributes:
        path: a file of `KINDS`.
        shows: what there is to see, for those who do not.
        caption: the sentence below it, or nothing.
    """

    path: Path
    shows: str
    caption: str = ""

    @property
    def uri(self) -> str:
        """The whole file as an address, so that the page needs no other."""
        return data_uri(self.path.read_bytes(), KINDS[self.path.suffix])


def write_document(
    folder: Path,
    stem: str,
    title: str,
    sheets: Sequence[Sheet],
    picture: str | None = None,
    plates: Sequence[Picture] = (),
) -> None:
    """Write sheets as `stem` with the suffixes .md, .tex and .html.

    Args:
        folder: where they are put; made if need be.
        stem: of the names.
        title: of the pages.
        sheets: in their order.
        picture: stem of a picture in the folder, there as .svg and .pdf.
        plates: pictures for the page alone.
    """
    shown = [*plates]
    if picture:
        shown.insert(0, Picture(folder / f"{picture}.svg", "F1 over λ, ours and the paper's"))
    texts = {
        ".md": markdown(title, sheets, picture),
        ".tex": latex(sheets, picture),
        ".html": html(title, sheets, shown),
    }
    for suffix, text in texts.items():
        write_bytes(folder / f"{stem}{suffix}", text.encode())


def markdown(title: str, sheets: Sequence[Sheet], picture: str | None) -> str:
    """Sheets as Markdown, columns of two levels in one."""
    parts = [f"# {title}"]
    for sheet in sheets:
        frame = sheet.frame.set_axis([_one_level(column) for column in sheet.frame.columns], axis=1)
        align = ["left", *["right"] * frame.shape[1]]
        table = frame.to_markdown(disable_numparse=True, colalign=align)
        parts += [f"## {sheet.title}", table, *sheet.notes, sheet.caption]
    if picture:
        parts.append(f"![F1 over λ]({picture}.svg)")
    return "\n\n".join(parts) + "\n"


def _one_level(column: Any) -> str:
    """A heading of one line, as Markdown has them: what is ours goes without saying."""
    parts = [column] if isinstance(column, str) else column
    return ", ".join(part for part in parts if part not in ("ours", ""))


def latex(sheets: Sequence[Sheet], picture: str | None) -> str:
    r"""Sheets as floats for `\input`; the first line says which packages they need."""
    floats = [_float(sheet) for sheet in sheets]
    if picture:
        floats.append(TEX_FIGURE.format(picture=picture))
    return "\n".join([TEX_PACKAGES, *floats]).translate(TEX)


def _float(sheet: Sheet) -> str:
    styler = sheet.frame.style.format(escape="latex")
    for axis in ("index", "columns"):
        styler = styler.format_index(escape="latex", axis=axis)
    columns = "l" + "r" * sheet.frame.shape[1]
    return TEX_TABLE.format(
        caption=f"{sheet.title}. {sheet.caption}".translate(TEX_SPECIAL),
        key=sheet.key,
        tabular=styler.to_latex(column_format=columns, hrules=True, multicol_align="c"),
        notes="".join(
            f"\\par\\footnotesize {note.translate(TEX_SPECIAL)}\n" for note in sheet.notes
        ),
    )


def html(title: str, sheets: Sequence[Sheet], pictures: Sequence[Picture] = ()) -> str:
    """Sheets and pictures as one page that needs nothing but itself."""
    tables = [(sheet, _html_table(sheet.frame)) for sheet in sheets]
    return draw_page("tables.html", title=title, tables=tables, pictures=pictures)


def _html_table(frame: pd.DataFrame) -> str:
    """A table; columns under one heading are a group, which the page rules off."""
    table = frame.to_html(border=0, justify="unset", index_names=False)
    if frame.columns.nlevels == 1:
        return table
    groups = groupby(frame.columns.get_level_values(0))
    spans = "".join(f'<colgroup span="{len(list(group))}">' for _, group in groups)
    return table.replace("<thead>", f"<colgroup>{spans}<thead>", 1)
