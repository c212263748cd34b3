"""Puts files of the repository that pages link to into the site: pictures and records, configurations, scripts.

A page links to them by their place in the repository, `../benchmarks/records/…`, so that the link works on the site, in
an editor and where the repository is browsed. Nothing is copied in git.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

LINK = re.compile(r"\]\(\s*<?(\.\./[^)>\s#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add each linked file outside docs/ (called by MkDocs); a link to a missing one stays, and MkDocs reports it."""
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
