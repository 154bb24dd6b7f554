"""Wrong input: one line that says what was expected and what to try, exit code 2, no traceback."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

RUN = ("run", "--victim", "resnet18", "--limit", "4", "--quiet")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "--victim", "resnet81"), ("victim 'resnet81'", "did you mean", "resnet")),
        ((*RUN, "--purifier", "apuade"), ("purifier 'apuade'", "did you mean 'apudae'")),
        ((*RUN, "--purifier", "none,dae"), ("purifier 'none'", "leave the purifier out", "in no sequence")),
        ((*RUN, "--purifier", ""), ("purifier '' is an empty name", "leave the purifier out")),
        ((*RUN, "--purifier", "dae,"), ("purifier '' is an empty name",)),
        ((*RUN, "--detector", ""), ("detector '' is an empty name",)),
        ((*RUN, "--finetune", " "), ("finetuner ' ' is an empty name",)),
        ((*RUN, "--dataset", ""), ("dataset '' is an empty name", "defend list dataset")),
        ((*RUN, "--attack", ""), ("attacks is empty",)),
        (("run", "--victim", ""), ("victim '' is an empty name", "defend list victim")),
        (("run", "--victim", "none"), ("victim 'none' is none: name one",)),
        (("train", "purifier", "dae", "--victim", ""), ("victim '' is an empty name",)),
        ((*RUN, "--set", "pdg.steps=3"), ("options for 'pdg'", "did you mean 'pgd'?")),
        (("list", "purifer"), ("Did you mean 'purifier'?",)),
        (("train", "purifer", "dae"), ("Did you mean 'purifier'?",)),
        ((*RUN, "--fpr", "0.1"), ("no detector", "--detector (in Python detector=)")),
        ((*RUN, "--dataset", "digit"), ("dataset 'digit'", "did you mean 'digits'")),
        ((*RUN, "--attack", "pdg"), ("attack 'pdg'", "did you mean 'pgd'")),
        ((*RUN, "--threat", "adaptiv"), ("threat 'adaptiv'", "did you mean 'adaptive'")),
        ((*RUN, "--precision", "fp23"), ("precision 'fp23'", "did you mean 'fp32'")),
        ((*RUN, "--purifier", "apudae", "--set", "purifier.step=3"), ("option 'step'", "did you mean 'steps'")),
        ((*RUN, "--purifier", "apudae", "--set", "purifier.steps=x"), ("steps='x'", "a whole number")),
        ((*RUN, "--purifier", "apudae", "--set", "purifier.steps=0"), ("steps=0", "at least 1")),
        ((*RUN, "--purifier", "apudae", "--set", "purifier.variant=H"), ("variant='H'", "known")),
        ((*RUN, "--purifier", "apudae", "--set", "purifier.depth=9"), ("depth", "defend train purifier apudae")),
        ((*RUN, "--set", "purifier.steps=3"), ("'purifier'", "does not have")),
        ((*RUN, "--set", "steps=3"), ("STAGE.OPTION=VALUE",)),
        ((*RUN, "--eps", "8"), ("did you mean 8/255?",)),
        ((*RUN, "--eps", "-0.1"), ("-0.1", "0 to 1")),
        ((*RUN, "--eps", "big"), ("'big'", "8/255")),
        ((*RUN, "--eps", "nan"), ("nan", "0 to 1")),
        ((*RUN[:3], "--limit", "0"), ("limit", "at least 1")),
        ((*RUN, "--batch-size", "0"), ("batch_size", "at least 1")),
        ((*RUN, "--device", "gpu"), ("'gpu'", "did you mean 'cuda'")),
        ((*RUN, "--device", "cdua:0"), ("'cdua:0'", "did you mean 'cuda'")),
        ((*RUN, "--purifer", "apudae"), ("--purifer", "--purifier")),
        (("run",), ("--victim",)),
        (("rum",), ("rum",)),
        (("show", "apudea"), ("did you mean 'apudae'",)),
        (("check", "resnet18", "--set", "victm.stem=standard"), ("'victm'", "victim")),
        (("reproduce", "--list", "--kept"), ("--list and --kept", "one of them")),
        (("reproduce", "apudae/table-2", "--kept", "--limit", "3"), ("--limit", "--kept measures nothing")),
        (("reproduce", "apudae/table-2", "--kept", "--seed", "0"), ("--seed", "--kept measures nothing")),
        (("reproduce", "--kept", "--readme", "r.md", "--json"), ("--readme and --json", "one of them")),
        (("train", "purifier", "dae", "--purifier", "blur"), ("knows no purifier", "--purifier blur")),
        (("train", "victim", "resnet18", "--purifier", "dae"), ("knows no purifier", "--purifier dae")),
        (("train", "purifier", "apudae", "--set", "epoch=3"), ("did you mean 'epochs'",)),
        (("train", "victim", "resnet18", "--dataset", "digitz"), ("did you mean 'digits'",)),
        (("run", "--victim", "resnet34"), ("`defend train victim resnet34 --dataset digits`", "--train-missing")),
        ((*RUN, "--victim-weights", "none.safetensors"), ("none.safetensors", "does not exist")),
        ((*RUN, "--log-dir", "logs"), ("without --log", "--log csv")),
        ((*RUN, "--log", "cvs"), ("'cvs'", "'csv'")),
        ((*RUN, "--at-least", "0.3", "--checks", "none"), ("--at-least 0.3 needs checks", "basic or full")),
        ((*RUN, "--at-least", "30%"), ("30%", "0 to 1")),
        ((*RUN, "--at-least", "pgdd=0.3"), ("'pgdd'", "'pgd'")),
        ((*RUN, "--dataset", "imagefolder"), ("--data-dir",)),
        ((*RUN, "--data-dir", "pets"), ("pets': the data set digits reads no files", "are --dataset")),
        (("train", "victim", "resnet18", "--data-dir", "pets"), ("digits reads no files",)),
        (("check", "resnet18", "--data-dir", "pets"), ("digits reads no files",)),
        (("calibrate", "--detector", "puvae", "--data-dir", "pets"), ("digits reads no files",)),
        (("export", "--victim", "resnet18", "--out", "x.onnx", "--data-dir", "pets"), ("digits reads no files",)),
        ((*RUN, "--dataset", "cifar10", "--data-dir", "nowhere"), ("nowhere'", "does not exist")),
        ((*RUN, "--out", ""), ("--out is empty: expected a path",)),
        (("train", "victim", "resnet18", "--out", "w.pth"), ("ends in '.pth'", "safetensors", "'w.safetensors'")),
        (("train", "purifier", "dae", "--out", "w"), ("'w' has no suffix", "'w.safetensors'")),
        (("calibrate", "--detector", "puvae", "--out", "w.pt"), ("ends in '.pt'", "'w.safetensors'")),
        ((*RUN, "--data-dir="), ("--data-dir is empty",)),
        (("report", ""), ("a path is empty",)),
        ((*RUN, "--victim-weights", "."), ("is a folder: expected a file of weights",)),
        ((*RUN, "--device", "meta"), ("device 'meta'", "known are auto")),
        ((*RUN, "--classes", "11"), ("--classes 11: digits has classes of its own",)),
        ((*RUN, "--config", "missing.toml"), ("missing.toml", "cannot be read")),
    ],
)
def test_wrong_arguments(refused, arguments, words):
    line = refused(*arguments)
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('victim = "resnet18"\npurifer = "apudae"\n', ("'purifer'", "did you mean 'purifier'")),
        ('victim = "resnet18"\nlimit = "many"\n', ("limit='many'", "a whole number")),
        ("victim = \n", ("not TOML",)),
        ('victim = "resnet18"\noptions = 3\n', ("options must hold",)),
    ],
)
def test_wrong_config_files(refused, tmp_path, text, words):
    (tmp_path / "run.toml").write_text(text)
    line = refused("run", "--config", tmp_path / "run.toml")
    for word in words:
        assert word in line, line


def broken_images(folder):
    (folder / "text.png").write_text("not an image")
    (folder / "empty.png").touch()
    Image.new("L", (1, 1)).save(folder / "dot.png")
    whole = folder / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(whole)
    (folder / "cut.png").write_bytes(whole.read_bytes()[:900])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text.png", "not an image"),
        ("empty.png", "is empty"),
        ("dot.png", "1x1"),
        ("cut.png", "cannot be read"),
        ("none.png", "does not exist"),
    ],
)
def test_wrong_images(refused, tmp_path, name, words):
    broken_images(tmp_path)
    line = refused("predict", tmp_path / name, "--victim", "resnet18")
    assert name in line
    assert words in line


def test_images_of_other_modes_are_read(defend, tmp_path):
    Image.fromarray(np.full((30, 30), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (30, 30), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("P", (30, 30)).save(tmp_path / "palette.png")
    answer = defend("predict", *sorted(tmp_path.glob("*.png")), "--victim", "resnet18")
    assert answer.code == 0, answer.error


def test_image_folders_that_cannot_be_used(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "cat" / "a.png")
    arguments = (*RUN, "--dataset", "imagefolder", "--data-dir")
    assert "does not exist" in refused(*arguments, tmp_path / "none")
    assert "is not an image folder" in refused(*arguments, tmp_path / "empty")
    assert "one class ('cat')" in refused(*arguments, tmp_path / "one")


def test_weights_that_are_not_what_they_seem(refused, tmp_path):
    import pickle

    from defend.plugins import registry
    from defend.weights.find import locate

    shipped = locate(registry().find("purifier", "apudae"), "digits")
    assert shipped is not None
    arguments = (*RUN, "--purifier", "apudae", "--purifier-weights")
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps({"a": 1}))
    assert "never loaded" in refused(*arguments, tmp_path / "pickle.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(shipped.read_bytes()[:-1000])
    assert "cut short" in refused(*arguments, tmp_path / "cut.safetensors")
    changed = bytearray(shipped.read_bytes())
    changed[-100] ^= 1
    (tmp_path / "changed.safetensors").write_bytes(changed)
    assert "content hash" in refused(*arguments, tmp_path / "changed.safetensors")
    assert "expected victim resnet18" in refused(*RUN, "--victim-weights", shipped)


def test_a_read_only_run_folder(refused, tmp_path, monkeypatch):
    def refuse(*_, **__):  # what a read-only folder answers; root, who may run these tests, is let through
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "locked").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkstemp", refuse)
        assert "cannot be written: Permission denied" in refused(*RUN, "--out", tmp_path / "locked")
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.mkdir", refuse)
        assert "cannot be made (Permission denied)" in refused(*RUN, "--out", tmp_path / "other")


def test_a_run_folder_that_is_a_file_or_full(refused, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be made" in refused(*RUN, "--out", tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "report.json").write_text("{}")
    assert "already holds a run" in refused(*RUN, "--out", tmp_path / "full")
    assert (tmp_path / "full" / "report.json").read_text() == "{}"


def test_debug_shows_the_traceback(defend):
    answer = defend("show", "nothing", "--debug")
    assert answer.code == 2
    assert "Traceback" in answer.error
