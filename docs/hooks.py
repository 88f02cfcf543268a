"""What the documentation site adds to the pages of docs/ while MkDocs builds it.

Reference pages, one per package, list every module; mkdocstrings fills them from docstrings. A link from a page to a
file or folder of the repository outside docs/ (an example, a script, a result) leads to a page that shows it.
"""

import json
import posixpath
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
ROOT = DOCS.parent
ROOT_PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
FIRST = (  # modules that most readers look for stand first on their page
    "world.world", "world.state", "world.engine", "simulation.simulator", "simulation.episode", "simulation.tasks",
    "simulation.controllers", "envs.env", "envs.vector", "envs.config", "envs.observations", "agents.planners",
    "agents.collect", "agents.collection", "camera.trajectory", "camera.twist", "recording.dataset",
    "recording.episode", "viewer.session",
)  # fmt: skip
LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)")
LANGUAGES = {".py": "python", ".json": "json", ".yaml": "yaml", ".toml": "toml", ".md": "markdown"}
ROOMS = {"agents": ROOT / "agents", "kernels": ROOT / "kernels"}  # packages that are installed inside sanawm_env


def on_startup(**_: object) -> None:
    """Lay out the package as it is installed, in links: two of its folders stand elsewhere in the repository."""
    documented = ROOT / "build" / "documented" / "sanawm_env"
    shutil.rmtree(documented, ignore_errors=True)
    documented.mkdir(parents=True)
    for path in (*(ROOT / "sanawm_env").iterdir(), *ROOMS.values()):
        if path.suffix in ("", ".py") and path.name != "__pycache__":
            (documented / path.name).symlink_to(path)


def on_files(files: Files, config: MkDocsConfig) -> None:
    for pages in (root_pages, reference_pages, notebook_page, source_pages):  # the last looks for links in all others
        for name, text in list(pages(files)):
            files.append(File.generated(config, name, content=text))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files outside docs/ lead to their pages; an environment's page shows its animation, if there is one."""

    def lead(match: re.Match) -> str:
        source = outside(page.file.src_uri, match[1])
        return match[1] if source is None else posixpath.relpath(page_of(source), posixpath.dirname(page.file.src_uri))

    markdown = LINK.sub(lead, markdown)
    animation = f"media/SanaWM-{Path(page.file.src_uri).stem}.webp"
    if page.file.src_uri.startswith("environments/") and files.get_file_from_path(animation):
        title, rest = markdown.split("\n", 1)
        markdown = f"{title}\n\n![What the camera sees in some episodes](../{animation})\n{rest}"
    return markdown


def packages() -> dict[str, Path]:
    """The folder of every package that has a page of its own, by its name inside sanawm_env."""
    inner = {p.parent.name: p.parent for p in sorted((ROOT / "sanawm_env").glob("*/__init__.py"))}
    engines = inner.pop("engines")
    return inner | ROOMS | {f"engines.{p.parent.name}": p.parent for p in sorted(engines.glob("*/__init__.py"))}


def modules(package: str, folder: Path) -> list[str]:
    """Dotted names of a package and of all modules in it."""
    paths = sorted(path.relative_to(folder).with_suffix("") for path in folder.rglob("*.py"))
    names = (".".join(part for part in path.parts if part != "__init__") for path in paths)
    full = sorted(f"{package}.{name}".rstrip(".") for name in names)
    return [f"sanawm_env.{name}" for name in (full[0], *sorted(full[1:], key=lambda name: (rank(name), name)))]


def rank(name: str) -> int:
    return FIRST.index(name) if name in FIRST else len(FIRST)


def root_pages(files: Files) -> Iterator[tuple[str, str]]:
    """Pages that stand at the top of the repository, with their links as seen from docs/."""
    for name, source in ROOT_PAGES.items():
        yield (
            name,
            re.sub(r"(?<=\]\()(docs/)?(?![a-z]+:|#)", lambda m: "" if m[1] else "../", (ROOT / source).read_text()),
        )


def reference_pages(files: Files) -> Iterator[tuple[str, str]]:
    for package, folder in packages().items():
        first, *others = modules(package, folder)
        head = f"# {first}\n\n::: {first}\n    options: {{ heading_level: 2, show_root_heading: false }}"
        listed = (f"::: {name}\n    options: {{ heading_level: 2 }}" for name in others)
        yield f"api/{package}.md", "\n\n".join((head, *listed)) + "\n"


def notebook_page(files: Files) -> Iterator[tuple[str, str]]:
    """The notebook with its pictures."""
    cells = json.loads((ROOT / "examples" / "tour.ipynb").read_text())["cells"]
    shown = "\n\n".join(part for cell in cells for part in notebook_cell(cell))
    yield "tutorials/notebook.md", shown.replace("](../docs/", "](../")


def notebook_cell(cell: dict) -> Iterator[str]:
    """A cell of a notebook as Markdown, and what it printed and drew."""
    text = "".join(cell["source"])
    yield text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
    for output in cell.get("outputs", ()):
        if "text" in output:
            yield f"```text\n{''.join(output['text'])}\n```"
        elif picture := output["data"].get("image/jpeg"):
            yield f"![Output of the cell above](data:image/jpeg;base64,{''.join(picture).strip()})"


def source_pages(files: Files) -> Iterator[tuple[str, str]]:
    """A page for each file or folder outside docs/ that some page links to."""
    linked = set()
    for file in files.documentation_pages():
        linked |= {outside(file.src_uri, link) for link in LINK.findall(file.content_string)}
    for source in sorted(linked - {None}):
        path = ROOT / source
        shown = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in LANGUAGES)
        yield page_of(source), f"# {source}\n\n" + "\n".join(map(listing, shown))


def listing(path: Path) -> str:
    fence, name = "`" * 8, path.relative_to(ROOT)
    return f'{fence}{LANGUAGES.get(path.suffix, "text")} title="{name}"\n{path.read_text()}\n{fence}\n'


def outside(page: str, link: str) -> str | None:
    """The path in the repository of a file or folder outside docs/ that a page links to; None for other links."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return path if not path.startswith(("docs/", "../")) and (ROOT / path).exists() else None


def page_of(source: str) -> str:
    return f"source/{source}.md"
