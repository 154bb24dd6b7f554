"""Images attacked on a bare victim are kept on disk, and the next defence of the same victim finds them."""

import json

import pytest

ONE = (
    "run",
    "--victim",
    "resnet20",
    "--limit",
    "12",
    "--batch-size",
    "8",
    "--threat",
    "oblivious",
    "--attack",
    "pgd",
    "--set",
    "pgd.steps=3",
    "--checks",
    "none",
    # where bfloat16 is there, its time decides, which is another one each time
    "--precision",
    "fp32",
    "--quiet",
)


@pytest.fixture
def attacked(defend, tmp_path):
    """Run a command; return of its attacked row how many images were reused, and every line of its records."""
    count = iter(range(99))

    def run(*arguments):
        out = tmp_path / f"run{next(count)}"
        answer = defend(*ONE, *arguments, "--out", out)
        assert answer.code == 0, answer.error
        report = json.loads((out / "report.json").read_text())
        return report["rows"][1]["reused"], (out / "records.csv").read_text(), answer.out

    return run


def test_the_second_purifier_pays_for_itself_alone(attacked):
    reused, made, printed = attacked("--purifier", "dae")
    assert reused == 0
    assert "earlier run" not in printed
    reused, _, printed = attacked("--purifier", "bits")
    assert reused == 12
    assert "12 attacked images are those of an earlier run" in printed
    reused, found, _ = attacked("--purifier", "dae")
    assert reused == 12
    assert found == made, "what is found is what was made, to the bit"
    reused, fresh, _ = attacked("--purifier", "dae", "--no-store")
    assert reused == 0
    assert fresh == made


@pytest.mark.parametrize(
    "other", [("--seed", "1"), ("--eps", "0.05"), ("--set", "pgd.labels=predicted"), ("--precision", "exact")]
)
def test_what_decides_the_images_decides_what_is_found(attacked, other):
    attacked("--purifier", "dae")
    reused, _, _ = attacked("--purifier", "dae", *other)
    assert reused == 0


def test_a_damaged_batch_is_made_again(attacked, tmp_path):
    _, made, _ = attacked("--purifier", "dae")
    entries = sorted((tmp_path / "cache" / "adversarial").glob("*/*.safetensors"))
    assert len(entries) == 2
    data = bytearray(entries[0].read_bytes())
    data[-3] ^= 1
    entries[0].write_bytes(bytes(data))
    reused, found, _ = attacked("--purifier", "dae")
    assert reused in (4, 8)
    assert found == made
    reused, _, _ = attacked("--purifier", "dae")
    assert reused == 12
