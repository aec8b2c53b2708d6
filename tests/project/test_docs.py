"""The documentation: every example of README and docs runs as it stands, the site builds, and no link is dead.

A page's ```python blocks run in order, in one namespace and an empty directory. Where one prints something, a ```text
block right behind it is that. A ```sh block runs between them: ``subbit`` commands as they are; of ``make`` the target
has to exist. A block whose first line is ``# not run: <reason>`` is left out.
"""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt

import subbit_infer

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
NOT_RUN = re.compile(r"# not run: (\S.*\S)")
INSTALL = ("pip install .",)  # what a machine that runs this test has done


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what it holds, and the line of the page that it begins after."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    found = []
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence":
            assert token.map is not None
            found.append(Block(token.info.partition(" ")[0], token.content, token.map[0] + 1))
    return found


def is_run(block: Block) -> bool:
    first = block.text.partition("\n")[0]
    assert first.startswith("# not run") <= bool(NOT_RUN.fullmatch(first)), f"line {block.line}: no reason"
    return not NOT_RUN.fullmatch(first)


PAGES = {
    str(page.relative_to(ROOT)): [b for b in blocks(page) if b.language in ("python", "sh", "text")]
    for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
}


def run_shell(block: Block, where: str) -> None:
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        if not words or line in INSTALL:
            continue
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{where}: {line}"
        elif words[0] == "subbit":
            from typer.testing import CliRunner

            from subbit_infer.cli import app

            result = CliRunner().invoke(app, words[1:])
            assert result.exit_code == 0, f"{where}: {line}\n{result.output}"
        else:
            pytest.fail(f"{where}: this test knows no command {words[0]!r}: {line}")


@pytest.mark.parametrize("page", [page for page, found in PAGES.items() if any(b.language != "text" for b in found)])
def test_the_examples_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed = ""
    for block in PAGES[page]:
        where = f"{page}, line {block.line}"
        if block.language == "text" and printed:
            assert printed == block.text, where
        printed = ""
        if block.language == "python" and is_run(block):
            capsys.readouterr()
            code = compile("\n" * block.line + block.text, str(ROOT / page), "exec")
            exec(code, namespace)
            printed = capsys.readouterr().out
        elif block.language == "sh" and is_run(block):
            run_shell(block, where)


def test_only_marked_blocks_are_left_out(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\n# not run: needs a download\n1 / 0\n```\n\n- ```python\n  1 / 0\n  ```\n")
    marked, other = blocks(page)
    assert not is_run(marked)
    assert is_run(other)
    assert (other.text, other.line) == ("1 / 0\n", 6)
    with pytest.raises(AssertionError, match="no reason"):
        is_run(Block("python", "# not run\n", 1))


def test_the_picture_is_what_its_script_draws():
    assert (DOCS / "figures/method.svg").read_text() == runpy.run_path(str(DOCS / "figures/method.py"))["draw"]()


def test_links_of_the_repositorys_pages():
    """Of README, CONTRIBUTING and CHANGELOG, which are read where they lie."""
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for token in MarkdownIt().parse((ROOT / page).read_text()):
            for child in token.children or []:
                link = str(child.attrGet("href") or child.attrGet("src") or "")
                if link and not urlsplit(link).scheme:
                    assert (ROOT / urlsplit(link).path).exists(), f"{page}: {link}"


class Links(HTMLParser):
    """What a page links to, and what may be linked to in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for key, value in attributes:
            if key in ("href", "src") and value:
                self.links.append(value)
            elif key in ("id", "name") and value:
                self.names.add(value)


TOOLS = ("sphinx", "furo", "myst_parser", "sphinx_copybutton")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; from another directory, or the source tree would stand before the installed package."""
    missing = [name for name in TOOLS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (make docs installs them)")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(out)]
    result = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return out


def test_every_internal_link_leads_somewhere(site):
    pages = {path: Links(path) for path in site.rglob("*.html")}
    assert len(pages) > 10
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path.name}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].names, f"{path.name}: {link}"


def public_names() -> list[str]:
    """Everything that a user may call, and the modules that hold some of it."""
    names = []
    for name in subbit_infer.__all__:
        thing = getattr(subbit_infer, name)
        home = thing.__name__ if isinstance(thing, ModuleType) else f"subbit_infer.{name}"
        names.append(home)
        if isinstance(thing, ModuleType):
            inside = getattr(thing, "__all__", [inner for inner in vars(thing) if not inner.startswith("_")])
            defined = [i for i in inside if getattr(getattr(thing, i), "__module__", "").startswith(thing.__name__)]
            names += [f"{home}.{inner}" for inner in defined]
    return names


def test_everything_public_is_in_the_reference(site):
    pages = [Links(path) for path in (site / "api").glob("*.html")]
    documented = {name.removeprefix("module-") for page in pages for name in page.names}
    assert [name for name in public_names() if name not in documented] == []
