"""Names that came from outside, wherever they are shown or become a file: markup, controls, other scripts, no text."""

from __future__ import annotations

import csv
import functools
import html.parser
import json
import os
from collections.abc import Iterable
from pathlib import Path

from tests.faults.harness import LOST, Answer, Injection, run_command
from tests.faults.toys import PURIFIER, obey_permissions, with_plugin

QUICKLY = ("--limit", "2", "--attack", "noise", "--threat", "noise", "--checks", "none", "--quiet", "--no-store")
RUN = ("run", "--victim", "resnet18", *QUICKLY)
HOSTILE = {
    "markup": "r[/b]",
    "a tag": "res[final]",
    "a script": "<script>alert(1)<script>",
    "an attribute": "\" onload='alert(1)",
    "a formula": "=HYPERLINK(0)",
    "a formula in a sign": "@SUM(1)",
    "an escape": "a\x1b[31mred\x1b[0m",
    "a title": "a\x1b]0;mine\x07b",
    "two lines": "a\nWorst case: 100 %",
    "a return": "a\rWorst",
    "a bell": "a\x07\x08b",
    "C1": "a\x9b31mb",
    "right to left": "a\u202etxt.exe",
    "emoji": "a\U0001f469\u200d\U0001f52cb",
    "another script": "\u0645\u0631\u062d\u0628\u0627",
    "no UTF-8": os.fsdecode(b"a\xff\xfeb"),
    "template": "{{ 7 * 7 }}{% raw %}",
    "mathematics": "$\\frac{1}{$",
    "quotes": "a'b\"c`d",
    "TOML": 'a"\nvictim = "x',
    "spaces": "  a  ",
    "an option": "--help",
    "a percent": "%s%n{0}",
    "very long": "n" * 200,
}


def injections() -> Iterable[Injection]:
    """Return them all."""
    for name, text in HOSTILE.items():
        quick = name in ("markup", "no UTF-8")
        yield Injection("run folders", name, functools.partial(_out, text=text), quick=quick)
        yield Injection("run folders, --json", name, functools.partial(_out, text=text, flags=("--json",)))
        quick = name == "markup"
        yield Injection("names of surrogates", name, functools.partial(_surrogate, text=text), quick=quick)
        yield Injection("summaries of plugins", name, functools.partial(_summary, text=text), quick=name == "an escape")
        yield Injection("files to predict", name, functools.partial(_predict, text=text))
        yield Injection("names of classes", name, functools.partial(_classes, text=text))
        yield Injection("options", name, functools.partial(_option, text=text))
    yield Injection("names of surrogates", "two that are one file", _twins)
    kind = "run folders that may only be read"
    yield Injection(kind, "report --out elsewhere", _report_elsewhere, quick=True)
    yield Injection(kind, "report", _report_there)


def _obeyed(answer: Answer) -> str:
    """Say what of an answer a terminal would obey."""
    for text in (answer.out, answer.error):
        for one in text:
            if one != "\n" and (ord(one) < 32 or 0x7F <= ord(one) < 0xA0 or one in "\u202a\u202b\u202c\u202d\u202e"):
                return f"{one!r} came to the terminal"
    return ""


def _out(folder: Path, text: str, flags: tuple[str, ...] = ()) -> str:
    """Run into a folder of that name, and draw its page; or be refused before anything is computed."""
    out = folder / text
    answer = run_command(folder, *RUN, *flags, "--out", out)
    if answer.code == 2:
        return answer.misbehaved(code=2) or _obeyed(answer) or ("refused after the run" if out.exists() else "")
    if wrong := answer.misbehaved(code=0) or _obeyed(answer):
        return wrong
    if not flags and "".join(text.split()) not in "".join(answer.out.split()) and text.isascii() and text.isprintable():
        return f"the folder's name is not what was written: {answer.out[-200:]!r}"
    page = run_command(folder, "report", out, *flags)
    return page.misbehaved(code=0) or _obeyed(page) or _whole(out)


def _whole(out: Path) -> str:
    if not (out / "report.json").is_file():
        return f"{LOST}the report"
    json.loads((out / "report.json").read_text(encoding="utf-8"))
    for file in out.glob("*.html"):
        if wrong := _injected(file.read_text(encoding="utf-8")):
            return wrong
    for file in out.glob("records.csv"):
        with file.open(newline="", encoding="utf-8") as lines:
            for line in csv.reader(lines):
                if bad := [cell for cell in line if cell[:1] in ("=", "@", "+", "\t", "\r")]:
                    return f"a cell of records.csv is a formula: {bad[0]!r}"
    return ""


def _injected(text: str) -> str:
    found = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            found.extend([tag] if tag == "script" else [])
            found.extend(name for name, _ in attributes if name.startswith("on"))

    Reader().feed(text)
    return f"the page holds {found[0]!r}" if found else "49" if ">49<" in text else ""


SURROGATES = """
    def surrogates(self):
        return {NAMES}
"""
BPDA = ("run", "--victim", "resnet18", "--purifier", "toy", "--limit", "2", "--attack", "pgd", "--threat", "bpda")
BPDA = (*BPDA, "--set", "pgd.steps=1", "--checks", "none", "--quiet", "--no-store", "--out", "r")


def _with_surrogates(names: list[str]) -> str:
    offered = ", ".join(f"{name!r}: Toy()" for name in names)
    method = SURROGATES.replace("NAMES", offered)
    return PURIFIER.replace("\n\ndef build(", f"{method}\n\ndef build(").replace(', train="toy_plugin:train"', "")


def _surrogate(folder: Path, text: str) -> str:
    install = with_plugin(_with_surrogates([text]))
    answer = run_command(folder, *BPDA, arrange=install)
    if answer.code == 2:  # before anything is computed
        wrong = answer.misbehaved(code=2, words=("purifier toy", "surrogate")) or _obeyed(answer)
        return wrong or ("refused after the run" if (folder / "r").exists() else "")
    if wrong := answer.misbehaved(code=0) or _obeyed(answer):
        return wrong
    page = run_command(folder, "report", "r", arrange=install)
    return page.misbehaved(code=0) or _obeyed(page) or _whole(folder / "r")


def _twins(folder: Path) -> str:
    names = ["a b", "a/b", "[b]", "(b)"]
    install = with_plugin(_with_surrogates(names))
    if wrong := run_command(folder, *BPDA, arrange=install).misbehaved(code=0):
        return wrong
    pictures = list((folder / "r").glob("examples-pgd-bpda*.png"))
    if len(pictures) != len(names) + 1:
        return f"{LOST}{len(pictures)} pictures of {len(names) + 1} rows"
    page = run_command(folder, "report", "r", "--json", arrange=install)
    if wrong := page.misbehaved(code=0):
        return wrong
    files = json.loads(page.out)
    return "" if len(set(files)) == len(files) else f"{LOST}two figures have one name"


def _summary(folder: Path, text: str) -> str:
    source = PURIFIER.replace('summary="one convolution"', f"summary={text!r}")
    for command in (("list",), ("list", "purifier"), ("list", "--json"), ("show", "toy"), ("show", "toy", "--json")):
        answer = run_command(folder, *command, arrange=with_plugin(source))
        if wrong := answer.misbehaved(code=0, words=("toy",)) or _obeyed(answer):
            return wrong
    return ""


def _image(path: Path) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), 99).save(path, format="png")
    return path


def _predict(folder: Path, text: str) -> str:
    file = _image(folder / "in" / f"{text}.png")
    for flags in ((), ("--json",), ("--save", str(folder / "out"))):
        answer = run_command(folder, "predict", file, "--victim", "resnet18", *flags)
        if wrong := answer.misbehaved(code=0) or _obeyed(answer):
            return wrong
    return "" if len(list((folder / "out").iterdir())) == 1 else f"{LOST}the purified image"


def _classes(folder: Path, text: str) -> str:
    """Evaluate an untrained victim on a folder of images whose classes have that name."""
    for split in ("train", "test"):
        for name in (text, "other"):
            for number in range(12):
                _image(folder / "data" / split / name / f"{number}.png")
    train = ("train", "victim", "mlp", "--dataset", "imagefolder", "--data-dir", folder / "data", "--set", "epochs=1")
    size = ("--set", "dataset.image_size=8", "--quiet")
    answer = run_command(folder, *train, *size)
    if wrong := answer.misbehaved(code=(0, 2)) or _obeyed(answer):
        return wrong
    if answer.code == 2:
        return ""
    run = ("run", "--victim", "mlp", *QUICKLY, "--dataset", "imagefolder", "--data-dir", folder / "data", *size[:2])
    answer = run_command(folder, *run, "--out", "r")
    if wrong := answer.misbehaved(code=0) or _obeyed(answer):
        return wrong
    page = run_command(folder, "report", "r")
    return page.misbehaved(code=0) or _obeyed(page) or _whole(folder / "r")


def _option(folder: Path, text: str) -> str:
    """Give the name as a victim, a purifier, a data set, a setting, an edition and a file of weights."""
    for flags in (
        ("--victim", text),
        ("--victim", "resnet18", "--purifier", text),
        ("--victim", "resnet18", "--dataset", text),
        ("--victim", "resnet18", "--set", f"victim.{text}=1"),
        ("--victim", "resnet18", "--victim-weights", f"+{text}"),
        ("--victim", "resnet18", "--victim-weights", text),
        ("--victim", "resnet18", "--device", text),
    ):
        answer = run_command(folder, "run", *flags, *QUICKLY, "--out", "r")
        if wrong := answer.misbehaved(code=2) or _obeyed(answer):
            return f"{flags[-2]}: {wrong}"
    return ""


def _report_elsewhere(folder: Path) -> str:
    answer = _of_read_only(folder, "--out", str(folder / "page.html"), "--json")
    if wrong := answer.misbehaved(code=0):
        return wrong
    files = [Path(file) for file in json.loads(answer.out)]
    if missing := [file for file in files if not file.is_file()]:
        return f"{LOST}{missing[0]}"
    return "" if len(files) > 2 else "no figures were drawn"


def _report_there(folder: Path) -> str:
    return _of_read_only(folder).misbehaved(code=2, words=(str(folder / "r"), "--out"))


def _of_read_only(folder: Path, *flags: str) -> Answer:
    run_command(folder, *RUN, "--out", folder / "r")
    (folder / "r").chmod(0o555)
    try:
        return run_command(folder, "report", folder / "r", *flags, arrange=obey_permissions)
    finally:
        (folder / "r").chmod(0o755)
