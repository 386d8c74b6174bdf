"""Find phrases that readers who learnt English as a second language stumble over.

``python tests/prose.py`` checks all Markdown pages of the repository, outside code blocks, and the docstrings and
comments of ``watchdog/``. With paths as arguments it checks these files and folders. The exit code is 1 if it finds a
phrase.

The list is short on purpose. It has only phrases that were found again and again in this repository, and a plain
replacement for each of them.
"""

from __future__ import annotations

import ast
import io
import itertools
import os
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Pages of other projects (in environments and build directories) are not ours.
FOLDERS = (".github", "docs", "examples", "image", "tests", "benchmarks")
NOT_OURS = {".venv", "build", "node_modules", "__pycache__"}

_SENTENCE_START = r"(?:^|[.!?|] |^[-*] )"
_NOT_A_QUESTION = r"(?![^.!?|]*\?)"


@dataclass(frozen=True)
class Rule:
    """A phrase to avoid.

    Args:
        pattern: a regular expression.
        instead: what to write.
        example: a sentence that the rule finds.
    """

    pattern: str
    instead: str
    example: str


@dataclass(frozen=True)
class Hit:
    line: int
    phrase: str
    instead: str


_NO = r"(?:longer|more|less|fewer|later|earlier|faster|slower|larger|smaller)\b"

RULES = (
    Rule(rf"(?<![Tt]here )\b(?:is|are|was|were) no (?!{_NO})", "is not a", "A trailer is no header."),
    Rule(r"\banew\b", "again", "The script is read anew."),
    Rule(r"\b(?:but|save) for\b", "except", "All tests but for the slow ones."),
    Rule(rf"{_SENTENCE_START}Who(?:ever)? {_NOT_A_QUESTION}", "name the person or program", "Who waits is refused."),
    Rule(
        r"\b(?:by|for|from|of|or|than|to|with) who(?:ever)?\b", "name the person or program", "An answer for who asks."
    ),
    Rule(r"\bwhoever\b", "name the person or program", "It answers whoever asks."),
    Rule(rf"{_SENTENCE_START}What(?:ever)? {_NOT_A_QUESTION}", "name the thing", "What is no file is skipped."),
    Rule(r"\b(?:[Tt]ells?|[Tt]old|[Tt]elling)\b", "report, return, log, show", "The log tells the event."),
    Rule(r"\bcall(?:ed|s)? off\b", "cancel, abort", "The upload was called off."),
    Rule(r"\bput off\b", "delay", "The removal is put off."),
    Rule(r"\bstands? for\b", "mean, represent", "A wrapped event stands for its object."),
    Rule(r"\bas good as\b", "about to, almost", "Calls that are as good as over."),
    Rule(r"(?<!what it )\b(?:would|will) (?:not )?do\b(?=[.:;,])", "be enough", "One thread would not do."),
    Rule(r"\bto the liking\b", "name the preference", "It is to the liking of the kernel."),
    Rule(r"\bmemory ends?\b", "memory runs out", "When memory ends, a script ends."),
    Rule(r"\b[Ii]n any case\b", "always, or: in upper or lower case", "A level in any case."),
    Rule(r"\bbe (?:it|the \w+ \w+ or not)\b", "whether or not", "At the start, be the port open or not."),
    Rule(r"\b(?:goes|go|went|gone) away\b", "disconnect", "The caller went away."),
    Rule(r"\b(?:holds?|held|holding) up\b", "delay, block", "A slow script holds up nobody."),
    Rule(r"\b(?:runs?|reads?|goes|go|writes?|serves?) on[.:;,|]", "continue", "The script runs on."),
    Rule(
        r"\b(?:taken|took|takes?|taking) (?:(?!long )\w+ ){0,3}for (?:a|an|the)\b",
        "mistake for, read as",
        "It is taken for a form.",
    ),
    Rule(r"\bfor want of\b", "because it has no", "It fails for want of memory."),
    Rule(r"[,:;] for (?:it|they|there|these|this|those|nobody|only)\b", "because", "It waits, for it is slow."),
    Rule(r"\b[Nn]or (?:can|could|did|do|does|had|has|have|is|are|was|were|will|would)\b", "and not", "Nor can root."),
    Rule(r"\b(?:and|or) the like\b", "and similar ones", "Quotes, stars and the like."),
    Rule(r"\bmend(?:s|ed|ing)?\b", "fix, repair", "The fault is mended."),
    Rule(r"\bwithout a word\b", "without a message", "It fails without a word."),
    Rule(r"(?i)\b(?:amid|hence|lest|thence|thereof|whence|wherein)\b", "a common word", "Amid an answer."),
    Rule(r"\bas ever\b", "as before, as usual", "It is answered as ever."),
    Rule(r"\w's ?(?:[.;,|]|$)", "add the noun", "An empty secret leaves the environment's."),
    Rule(r"\bmay not\b", "must not, or: possibly does not", "It may not read."),
)


def hits(text: str) -> list[Hit]:
    """Return each phrase of ``RULES`` that is in ``text``, in the order of the text."""
    found = []
    for block in _blocks(text):
        # The lines of a paragraph become one, so that a phrase is also found across the end of a line.
        starts = itertools.accumulate((len(line) + 1 for _, line in block), initial=0)
        numbers = list(zip(starts, (number for number, _ in block), strict=False))
        joined = " ".join(line for _, line in block)
        for rule in RULES:
            for match in re.finditer(rule.pattern, joined):
                number = max(number for start, number in numbers if start < match.end())
                found.append(Hit(number, match.group().strip(".!?|-* "), rule.instead))
    return sorted(found, key=lambda hit: hit.line)


def _blocks(text: str) -> Iterator[list[tuple[int, str]]]:
    """Yield the numbered lines of each paragraph, item of a list, heading and row of a table."""
    block: list[tuple[int, str]] = []
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        stripped = line.strip()
        if block and re.match(r"[-*] |\d+\. |#|\||$", stripped):
            yield block
            block = []
        if stripped:
            block.append((number, stripped))


def _blank(found: re.Match[str]) -> str:
    """Replace code by a word of the same length, so that lines keep their numbers."""
    return re.sub(r"[^\n]", "X", found.group())


def _empty(found: re.Match[str]) -> str:
    return "\n" * found.group().count("\n")


def prose_of_markdown(text: str) -> str:
    """Return a page without code blocks, code, comments and addresses of links.

    Tables that a program writes are left out, too. Their texts belong to that program.
    """
    text = re.sub(r"^<!-- (\w+): made by .*?^<!-- end of \1 -->", _empty, text, flags=re.S | re.M)
    text = re.sub(r"^ *```.*?^ *```$|<!--.*?-->", _empty, text, flags=re.S | re.M)
    return re.sub(r"`[^`]+`|(?<=\])\([^)]*\)", _blank, text)


def prose_of_python(text: str) -> str:
    """Return the docstrings and comments of a module, each at its line."""
    lines = [""] * (text.count("\n") + 2)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = token.string.lstrip("#: ")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring is not None:
                first = node.body[0].lineno - 1
                for number, line in enumerate(docstring.split("\n")):
                    lines[first + number] = line
    return re.sub(r"``[^`]+``|`[^`]+`", _blank, "\n".join(lines))


def prose_of(path: Path) -> str:
    text = path.read_text()
    return prose_of_python(text) if path.suffix == ".py" else prose_of_markdown(text)


def checked_files() -> list[Path]:
    """Return the Markdown pages of the repository, and the modules of the package."""
    pages = [*ROOT.glob("*.md"), *files_in(ROOT / folder for folder in FOLDERS)]
    return sorted([*pages, *files_in([ROOT / "watchdog"], (".py",))])


def files_in(paths: Iterable[Path], suffixes: tuple[str, ...] = (".md",)) -> Iterator[Path]:
    """Yield the files with these suffixes in and below ``paths``."""
    for path in paths:
        if path.is_file():
            yield path
        for file in path.rglob("*") if path.is_dir() else ():
            if file.suffix in suffixes and file.is_file() and not NOT_OURS & set(file.relative_to(path).parts):
                yield file


def main(arguments: list[str]) -> int:
    files = sorted(files_in(map(Path, arguments), (".md", ".py"))) if arguments else checked_files()
    count = 0
    for file in files:
        for hit in hits(prose_of(file)):
            count += 1
            print(f"{os.path.relpath(file)}:{hit.line}: '{hit.phrase}' (write: {hit.instead})")
    print(f"{len(files)} files checked, {count} phrases to rewrite")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
