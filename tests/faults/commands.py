"""Commands that write files: how each is begun, how it goes on, and what it leaves in the end."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import attrs
from tests.faults import disk
from tests.faults.harness import Answer, run_command

Product = Callable[[Path], dict[str, str]]
"""What a command leaves in a folder, by name: digests of what must be the same each time."""


@attrs.frozen
class Command:
    """A command that is broken, and goes on.

    Attributes:
        name: for people.
        arguments: what is typed.
        operations: how many file operations it makes, see `disk.count_operations`,
        files: and how often a file is opened for writing among them.
        product: what it leaves.
        after: the name of the command whose results it begins with, "" for an empty folder.
        resumes: the run folder that --resume takes; where there is none the same command goes on.
        step: of a command much like another, every so manyth operation is broken.
    """

    name: str
    arguments: str
    operations: int
    files: int
    product: Product
    after: str = ""
    resumes: str = ""
    step: int = 1

    def prepare(self, folder: Path) -> None:
        """Put what it begins with into an empty folder."""
        if self.after:
            shutil.copytree(whole(self.after), folder, dirs_exist_ok=True)

    def start(self, folder: Path, arrange: Callable[[], object] | None = None) -> Answer:
        """Type it."""
        return run_command(folder, *self.arguments.split(), **({} if arrange is None else {"arrange": arrange}))

    def go_on(self, folder: Path, resume: bool) -> str:
        """Go on where it stopped; return what is wrong with what it leaves then, "" if nothing."""
        arguments = f"run --resume {self.resumes}" if resume else self.arguments
        answer = run_command(folder, *arguments.split())
        if answer.code or answer.misbehaved():
            return f"`defend {arguments}` does not go on: {answer.misbehaved(code=0)}"
        return self.differs(folder)

    @property
    def renames(self) -> int:
        """How many files are written."""
        return self.files // 2

    def differs(self, folder: Path, optional: tuple[str, ...] = ()) -> str:
        """Say how what is there is not what the command leaves where nothing goes wrong, but for what is optional."""
        there, wanted = self.product(folder), self.product(whole(self.name))
        wrong = sorted(
            key
            for key in {*there, *wanted}
            if there.get(key) != wanted.get(key) and not any(each in key for each in optional)
        )
        return f"{wrong[0]} is {'not there' if wrong[0] not in there else 'another'}" if wrong else ""


def _tree(*patterns: str, leave: str = "") -> Product:
    """Files as they are."""

    def product(folder: Path) -> dict[str, str]:
        files = (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
        named = {str(path.relative_to(folder)): path for path in files}
        return {name: "" if leave and leave in name else _digest(path) for name, path in named.items()}

    return product


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(*arms: str) -> Product:
    """Run folders: the records to the byte, the figures of the report, and which files there are."""

    def product(folder: Path) -> dict[str, str]:
        found = {}
        for arm in arms:
            found |= {str(path.relative_to(folder)): "" for path in (folder / arm).rglob("*")}
            if (folder / arm / "report.json").exists():
                report = json.loads((folder / arm / "report.json").read_text())
                found[f"{arm}/report.json"] = json.dumps(
                    [report["worst_case"], report["partial"], len(report["checks"])]
                )
            for name in ("records.csv", "config.toml"):
                if (folder / arm / name).exists():
                    found[f"{arm}/{name}"] = _digest(folder / arm / name)
        return found

    return product


def _weights(name: str) -> Product:
    """A weights file: the hash of its tensors."""

    def product(folder: Path) -> dict[str, str]:
        from defend.weights.card import read_card

        path = folder / "cache/weights" / name
        return {name: read_card(path).content_sha256} if path.exists() else {}

    return product


RUN = (
    "run --victim resnet18 --purifier dae --limit 8 --adaptive-limit 4 --attack fgsm --threat oblivious --batch-size 4 "
    "--checks basic --quiet"
)
COMMANDS = {
    each.name: each
    for each in (
        Command("run", f"{RUN} --out r", 92, 36, _run("r"), resumes="r"),
        Command(
            "two arms", f"{RUN} --purifier unet_gan --out a", 131, 54, _run("a/dae", "a/unet_gan"), resumes="a", step=3
        ),
        Command(
            "train",
            "train purifier dae --set epochs=2 --set train_subset=60 --quiet",
            27,
            9,
            _weights("purifier-dae-digits.safetensors"),
        ),
        Command("calibrate", "calibrate --detector puvae --quiet", 7, 2, _weights("detector-puvae-digits.safetensors")),
        Command("export", "export --victim resnet18 --purifier dae --out m.pt2", 6, 2, _tree("m.pt2", leave="m.pt2")),
        Command("report", "report r", 21, 10, _tree("r/report.html", "r/figures/*"), after="run"),
        Command(
            "report of two",
            "report a",
            46,
            22,
            _tree("defend-report*", "a/*/figures/*"),
            after="two arms",
            step=4,
        ),
        Command(
            "predict",
            "predict r/examples-fgsm-oblivious.png --victim resnet18 --purifier dae --save p --json",
            5,
            2,
            _tree("p/*"),
            after="run",
        ),
        Command("recipe", "recipe mnist-robust --toml x.toml", 4, 2, _tree("x.toml")),
        Command("new plugin", "new-plugin blurry --stage purifier", 27, 11, _tree("blurry/**/*"), step=3),
    )
}
_made: list[tempfile.TemporaryDirectory[str]] = []
_making = threading.RLock()


@functools.cache
def _whole(name: str) -> Path:
    made = tempfile.TemporaryDirectory(prefix="defend-whole-")
    atexit.register(made.cleanup)
    folder = Path(made.name)
    COMMANDS[name].prepare(folder)
    answer = COMMANDS[name].start(folder)
    if answer.code:
        raise RuntimeError(f"`defend {COMMANDS[name].arguments}` exits with {answer.code}: {answer.error}")
    return folder


def whole(name: str) -> Path:
    """Return a folder in which a command was run and nothing went wrong; not to be written into."""
    with _making:
        return _whole(name)


def operations(name: str) -> list[str]:
    """Return the file operations of a command, as `python -c` prints them to whoever changes their number."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        COMMANDS[name].prepare(folder)
        COMMANDS[name].start(folder, disk.arranged(disk.count_operations))
        return (folder / disk.MARK).read_text().splitlines()
