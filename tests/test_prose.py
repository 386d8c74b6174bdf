"""The pages and the package have no phrase of the list in prose.py, and the check finds each of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from prose import ROOT, RULES, Rule, checked_files, hits, main, prose_of, prose_of_markdown, prose_of_python


def test_no_file_has_a_phrase_of_the_list() -> None:
    found = {str(file.relative_to(ROOT)): hits(prose_of(file)) for file in checked_files()}
    assert len(found) > 100
    assert {file: phrases for file, phrases in found.items() if phrases} == {}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.instead)
def test_example_of_each_rule_is_found(rule: Rule) -> None:
    assert rule.instead in [hit.instead for hit in hits(rule.example)]


@pytest.mark.parametrize(
    "text",
    [
        "There is no script.",
        "The server is no longer ready.",
        "What happened?",
        "Who may call?",
        "## What is not promised",
        "A caller who waits gets 429.",
        "Put it into the place of the file.",
    ],
)
def test_plain_sentence_is_not_found(text: str) -> None:
    assert hits(text) == []


def test_phrase_across_two_lines_is_found_at_its_last_line() -> None:
    assert [(hit.line, hit.phrase) for hit in hits("\nAll tests but\n  for one.\n")] == [(3, "but for")]


def test_cell_of_a_table_is_the_start_of_a_sentence() -> None:
    assert [hit.phrase for hit in hits("| a | What is left |")] == ["What"]


def test_code_of_a_page_is_not_checked() -> None:
    page = "```\nread anew\n```\n\n`read anew`\n\n<!-- read anew -->\n\n[a](anew.md)\n\nread anew\n"
    assert [hit.line for hit in hits(prose_of_markdown(page))] == [11]


def test_docstrings_and_comments_of_a_module_are_checked() -> None:
    module = '"""One.\n\nRead anew."""\n\ntext = "read anew"  # read anew\n# This is\n# no list.\n'
    assert [hit.line for hit in hits(prose_of_python(module))] == [3, 5, 7]


def test_main_prints_file_line_and_replacement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.md").write_text("One.\n\nRead anew.\n")
    (tmp_path / "module.py").write_text("# All fine.\n")
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "page.md:3: 'anew' (write: again)" in printed
    assert printed.endswith("2 files checked, 1 phrases to rewrite\n")
    assert main([str(tmp_path / "module.py")]) == 0
