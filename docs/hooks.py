"""Puts files of the repository that pages link to into the site, and makes a page of each notebook.

The files are pictures and records, configurations, scripts.

A page links to them by their place in the repository, `../benchmarks/records/…`, so that the link works on the site, in
an editor and where the repository is browsed. Nothing is copied in git.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

LINK = re.compile(r"\]\(\s*<?(\.\./[^)>\s#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add each linked file outside docs/, and the notebooks as pages (called by MkDocs).

    A link to a missing file stays, and MkDocs reports it.
    """
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = file.src_uri.removesuffix(".ipynb") + ".md"
        files.append(File.generated(config, page, content=as_page(Path(file.abs_src_path))))
    root = Path(config.docs_dir).parent
    for page in files.documentation_pages():
        for link in LINK.findall(page.content_string):
            source = posixpath.normpath(posixpath.join(posixpath.dirname(page.src_uri), link))
            if not source.startswith("../") or files.get_file_from_path(source) is not None:
                continue
            path = (root / source.removeprefix("../")).resolve()
            if path.is_file() and path.is_relative_to(root):
                added = File.generated(config, source, abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV)
                added.dest_uri = posixpath.join("repository", added.dest_uri.removeprefix("../"))
                files.append(added)
    return files


def as_page(notebook: Path) -> str:
    """The text and the code of a notebook as Markdown, with a link to the notebook below its title."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    parts = ["".join(cell["source"]) for cell in cells]
    shown = [
        part if cell["cell_type"] == "markdown" else f"```python\n{part}\n```"
        for cell, part in zip(cells, parts, strict=True)
    ]
    title, _, rest = shown[0].partition("\n")
    link = f"[Download the notebook]({notebook.name}){{ download }}"
    return "\n\n".join([title, link, rest.strip(), *shown[1:]]) + "\n"
