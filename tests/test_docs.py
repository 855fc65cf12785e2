"""README and docs/: their links lead somewhere, and their commands know the flags that they show."""

import re

import pytest
from conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")]
COMMAND = re.compile(r"python ((?:\w+/)?\w+\.py)((?:[^\n`#]*\\\n)*[^\n`#]*)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert "://" in link or (page.parent / link).exists(), link


def test_commands_know_their_flags(project):
    flags, checked = {}, 0
    for page in PAGES:
        for script, arguments in COMMAND.findall(page.read_text(encoding="utf-8")):
            if script.startswith("docs/"):
                continue
            if script not in flags:
                subcommands = ["data", "runs", "results"] if script == "analysis.py" else [""]
                helps = [project.run(script, *command.split(), "-h").stdout for command in subcommands]
                flags[script] = set(re.findall(r"--\w+", "".join(helps)))
            shown = set(re.findall(r"--\w+", arguments))
            assert shown <= flags[script], (page.name, script)
            checked += len(shown)
    assert checked > 50


def test_every_flag_of_train_is_explained(project):
    page = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"--\w+", page))
    assert set(re.findall(r"--\w+", project.run("train.py", "-h").stdout)) - {"--help"} <= explained
