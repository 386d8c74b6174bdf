"""Choose the files of the docs site (a hook of MkDocs).

MkDocs takes all files of one folder. The pages of this project lie in several folders, and link to each other by their
places in the repository, so that the links also work for a reader of the repository. So this hook gives MkDocs the
files by their paths in the repository. On the site, the pages of ``docs/`` are at the top.

The hook runs in the environment of MkDocs, which does not have the program (see ``docs/requirements.in``).
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_REPOSITORY = Path(__file__).parent.parent
_FILES = (
    "docs/**/*.md",
    "docs/**/*.svg",
    "docs/images/*.png",
    "docs/site.css",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "examples/*.md",
    "examples/*/*.md",
    # Pages of the examples link to these.
    "examples/knative/*.yaml",
    "examples/kubernetes/*.yaml",
    "examples/oscar-cluster/*.yaml",
    "examples/openfaas/*/script.sh",
    "examples/openfaas/*/index.py",
)
# The tables of the last `make bench`, which docs/explanation/performance.md contains.
_LEFT_OUT = frozenset({"docs/explanation/performance/results.md"})


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of ``docs/`` by those of the repository."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    paths = {str(path.relative_to(_REPOSITORY)) for pattern in _FILES for path in _REPOSITORY.glob(pattern)}
    for path in sorted(paths - _LEFT_OUT):
        file = File(path, str(_REPOSITORY), config.site_dir, config.use_directory_urls)
        file.dest_uri = file.dest_uri.removeprefix("docs/")
        files.append(file)
    return files
