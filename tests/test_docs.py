"""README and docs: commands parse, what they name exists, links lead somewhere."""

import argparse
import re
import runpy
import shlex
import sys
from importlib.util import find_spec
from itertools import dropwhile
from pathlib import Path
from string import Template

import pytest
from sacred.arg_parser import get_config_updates

import eval_global
import eval_rerank
import experiment_global
import experiment_rerank
import prepare_data
from benchmarks.__main__ import BENCHMARKS
from tests import ROOT
from utils.experiment import command
from utils.settings import check_settings

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted((*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")))
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN_BY_OTHER_TESTS = {  # pages with blocks of Python
    "README.md": "tests/rrt/test_blocks.py",
    "docs/library.md": "tests/rrt/test_blocks.py",
    "docs/engines.md": "tests/rrt/test_blocks.py",
    "docs/integrations.md": "tests/rrt/test_blocks.py",
    "docs/extending.md": "tests/extending/test_page.py",
}
EXPERIMENTS = {
    "eval_global.py": eval_global,
    "eval_rerank.py": eval_rerank,
    "experiment_global.py": experiment_global,
    "experiment_rerank.py": experiment_rerank,
    "prepare_data.py": prepare_data,
}
WITH_PARSERS = {"rrt", "report", "utils.logs", "benchmarks", "docs.example"}
TOOLS = {"tools.make_head", "tools.judge", "tools.families", "tools.large_index", "tools.map_codes", "tools.cascade"}
SHELL = {"source", "touch", "cp", "grep", "export", "curl"}  # programs without a check


def blocks(page: str, language: str) -> list[str]:
    return [text for marked, text in FENCE.findall(PAGES[page]) if marked == language]


def commands(page: str) -> list[list[str]]:
    """The words of each command of a page, its variables replaced."""
    found = []
    for block in blocks(page, "sh"):
        variables: dict[str, str] = {}
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(Template(line).safe_substitute(variables), comments=True)
            if len(words) == 1 and re.match(r"[A-Z]+=", words[0]):
                name, _, variables[name] = words[0].partition("=")
                continue
            text = "\0".join(words).partition("\0>\0")[0]
            found += [part.split("\0") for part in text.split("\0|\0") if part]
    return found


COMMANDS = [pytest.param(words, id=f"{page}: {' '.join(words)[:60]}") for page in PAGES for words in commands(page)]


def configs(script: str, words: list[str]) -> dict:
    """The config of a command's words behind its script; AssertionError for what it does not know."""
    module = EXPERIMENTS[script]
    options, _, settings = " ".join(words).partition("with ")
    assert re.fullmatch(r"--help|(-F \S+ |--unobserved )?\w* ?", options), options
    if options and options.split()[0] != "-F":
        assert options.split()[-1] in ("--help", "--unobserved", *dict(module.ex.gather_commands()))
    updates, named = get_config_updates(words[words.index("with") + 1 :] if settings else [])
    run = module.ex.run("print_config", updates, named_configs=named, options={"--loglevel": "ERROR"})
    assert not run.config_modifications.added, "unknown settings"
    return run.config


def check_script(script: str, words: list[str]) -> None:
    config, module = configs(script, words), EXPERIMENTS[script]
    if module is prepare_data:
        prepare_data.check(config)
        return
    check_settings(config, command.RULES)
    for name, rules in module.RULES.items():
        check_settings(config[name] if name else config, rules)
    if module is experiment_rerank:
        experiment_rerank.check_combination(config)


class Parsed(Exception):
    """Raised in place of what a command would do."""


def check_module(name: str, words: list[str], monkeypatch) -> None:
    if name in ("pip", "venv"):
        return
    if name == "pytest":
        assert all((ROOT / word).exists() for word in words)
    elif name == "uvicorn":
        assert find_spec(words[0].removesuffix(":app"))
    elif name in WITH_PARSERS | TOOLS:
        if name == "benchmarks":
            assert words[0] in BENCHMARKS
            if words[0] == "memory":  # takes no arguments
                assert not words[1:]
                return
        parse = argparse.ArgumentParser.parse_args

        def parsed(parser, arguments=None, namespace=None):
            parse(parser, arguments, namespace)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        monkeypatch.setattr(sys, "argv", [name, *words])
        monkeypatch.delitem(sys.modules, f"{name}.__main__", raising=False)  # of a test before
        monkeypatch.delitem(sys.modules, name if name in {"docs.example", *TOOLS} else "", raising=False)
        with pytest.raises(Parsed):
            runpy.run_module(name, run_name="__main__")
    else:
        raise AssertionError(f"python -m {name} is not known here")


def check_pip(words: list[str]) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\.\[(\w+)\]", " ".join(words)):
        assert re.search(rf"^{extra} = \[", text, re.MULTILINE), extra


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_parses(words, monkeypatch, capsys):
    program, *words = words
    if program in ("torchrun", "sbatch"):
        words = [*dropwhile(lambda word: word.startswith("--"), words)]
        assert program == "torchrun" or (ROOT / words.pop(0)).exists()
        program = "python"
    if program in ("python", "python3"):
        first, *words = words
        if first == "-m":
            check_module(words[0], words[1:], monkeypatch)
        else:
            check_script(first, words)
    elif program == "make":
        for target in words:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    elif program == "pip":
        check_pip(words)
    else:
        assert program in SHELL, f"{program} is not known here"


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_commands_python_or_no_code(page):
    languages = {language for language, _ in FENCE.findall(PAGES[page])}
    assert languages <= {"sh", "text", "bibtex"} | ({"python"} if page in RUN_BY_OTHER_TESTS else set())


def anchors(page: str) -> set[str]:
    """Those of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", PAGES[page]), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", PAGES[page])):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(str(path.resolve().relative_to(ROOT.resolve()))), target


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    for name in re.findall(r"`(\w[\w/]*/(?:\w+\.(?:py|sh|js|npz))?)`", PAGES[page]):
        assert (ROOT / name).exists() or name.count("/") == 1, name


@pytest.fixture(scope="module")
def known_settings():
    """The names of all settings, and of the named ones."""
    known = set()
    for module in EXPERIMENTS.values():
        config = module.ex.run("print_config", options={"--loglevel": "ERROR"}).config
        known |= {name for name in config if name not in ("dataset", "model")}
        known |= {f"{part}.{name}" for part in ("dataset", "model") for name in config.get(part, {})}
        known |= {name for name, _ in module.ex.gather_named_configs()}
    return known


@pytest.mark.parametrize("page", PAGES)
def test_settings_that_are_named_exist(page, known_settings):
    text = FENCE.sub("", PAGES[page])
    if page == "docs/settings.md":
        rows = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
        named = re.findall(r"`([\w.]+)`", " ".join(rows))
        assert len(named) > 20
    else:
        named = re.findall(r"`((?:dataset|model)\.(?!safetensors)\w+)(?:=[^`]*)?`", text)
    assert set(named) <= known_settings


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150 and len(PAGES["README.md"].encode()) <= 9_000
    assert {Path(page).name for page in PAGES if page.startswith("docs/")} <= set(
        re.findall(r"\(docs/([\w.]+)[)#]", PAGES["README.md"])
    ), "a page that the README does not name"
