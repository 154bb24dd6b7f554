"""tools/: the plan fits what is installed, the schedule keeps to its budget, parcels arrive whole."""

import errno
import hashlib
import io
import json
import math
import tarfile
import time
from pathlib import Path

import attrs
import pytest
from tools import pack_data, parcels, train_all
from tools.parcels import Limits, pack, unpack
from tools.perform import Settings, find_finished, item_command, options_of
from tools.plan import PLAN, TABLES, TRAININGS, Measure, Train, seconds
from tools.plan_cpu import CPU_PLAN
from tools.schedule import Schedule
from tools.ships import find_shipped

from defend.errors import ConfigError, DataError, WriteError
from defend.options import describe, make
from defend.plugins import registry
from defend.reproduce.jobs import find_missing
from defend.reproduce.results import find_kept
from defend.util.files import cache_dir

PART = 128 * 1024
NAMES = {item.name: item for item in PLAN}


CPU_NAMES = {item.name: item for item in CPU_PLAN}
PLANS = {"gpu": PLAN, "cpu": CPU_PLAN}


def closure(item):
    found = set()
    for name in (*item.needs, *item.after):
        found |= {name} | closure(NAMES[name])
    return found


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_every_training_of_the_plan_is_one_that_the_registry_accepts(plan):
    for item in (item for item in plan if isinstance(item, Train)):
        found = registry().find(item.stage, item.stage_name)
        spec = found.spec
        assert spec.train is not None
        assert not item.edition or item.edition in spec.editions, item.name
        registry().find("dataset", item.dataset)
        for stage, name in (("victim", item.victim), ("purifier", item.purifier)):
            assert name is None or registry().find(stage, name)
        own, recipe = ({option.name for option in describe(kind)} for kind in (spec.config, spec.recipe))
        chosen = {**spec.recipes.get(item.dataset, {}), **spec.editions.get(item.edition, {}), **item.options}
        assert set(item.options) <= own | recipe, item.name
        found.config({name: value for name, value in chosen.items() if name in own})
        make(spec.recipe, {name: value for name, value in chosen.items() if name in recipe}, item.name)


def test_names_and_files_are_unique_and_needs_go_first():
    assert len(NAMES) == len(PLAN) == len({item.file for item in PLAN})
    for item in PLAN:
        assert all(NAMES[name].rank < item.rank for name in (*item.needs, *item.after)), item.name
        assert 0 < item.seconds < 600
    assert len(CPU_NAMES) == len(CPU_PLAN) == len({item.file for item in CPU_PLAN})
    for item in CPU_PLAN:
        assert all(CPU_NAMES[name].rank < item.rank for name in item.needs) and not item.after, item.name


def test_what_a_cpu_makes_that_ships_is_not_made_again(tmp_path, capsys):
    cache = tmp_path / "cache"
    shipped = find_shipped(CPU_PLAN, cache)
    assert all(name in CPU_NAMES for name in shipped)
    assert find_shipped(TRAININGS, cache)["resnet20/cifar10"] == "ships in defend_dae_finetune.weights"
    assert "resnet18/cifar10" not in find_shipped(TRAININGS, cache), "no weights of it ship"
    settings = ("--profile", "cpu", "--work", str(tmp_path))
    assert train_all.main([*settings, "--list"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert {line.split(" min ")[1].split()[0] for line in lines} >= {"ships"} if shipped else True
    assert last.startswith(f"{len(CPU_PLAN) - len(shipped)} of {len(CPU_PLAN)} items are left")
    if shipped:  # nothing is opened, imported or trained for it
        assert train_all.main([*settings, "--only", *shipped]) == 0
        assert "ships in" in capsys.readouterr().out and not list((tmp_path / "logs").iterdir())


@pytest.mark.parametrize("lack", ["nothing", "adaptive", "ours", "weights"])
def test_a_table_ships_only_where_nothing_of_it_would_be_measured(tmp_path, monkeypatch, lack):
    name = "apudae/table-3-resnet20"
    kept = find_kept(registry().tables[name])
    unmeasured = (attrs.evolve(cell, ours=None) if cell.paper is None else cell for cell in kept.cells)
    others = {arm: dict.fromkeys(parts, "0" * 64) for arm, parts in kept.weights.items()}
    changed = {
        "nothing": {},
        "adaptive": {"adaptive": ()},
        "ours": {"cells": tuple(unmeasured)},
        "weights": {"weights": others},
    }
    for module in ("tools.ships", "defend.reproduce.open_cells"):
        monkeypatch.setattr(f"{module}.find_kept", lambda table: attrs.evolve(kept, **changed[lack]))
    assert (name in find_shipped([CPU_NAMES[name]], tmp_path)) is (lack == "nothing")


def test_a_precision_that_is_the_machine_s_is_done_in_either(tmp_path, monkeypatch):
    item = CPU_NAMES["resnet20/cifar10+long"]
    settings = Settings(work=tmp_path, plan=CPU_PLAN, device="cpu")
    said = {}
    for able in (True, False):
        monkeypatch.setattr("tools.perform.multiplies_bfloat16", lambda able=able: able)
        said[able] = item_command(item, settings)
    assert "--precision bf16" in said[True] and "--precision" not in said[False]
    product, record = settings.product(item), settings.record(item)
    for file in (product, record):
        file.parent.mkdir(parents=True)
    product.touch()
    for command, figure in ((said[True], "well"), (said[False], "well"), (said[True] + " --set epochs=2", None)):
        record.write_text(
            json.dumps({"scale": 1.0, "command": command, "made_with": {}, "figure": "well", "whole": True})
        )
        assert find_finished(item, settings) == figure


def test_a_training_on_an_edition_of_its_victim_says_so(tmp_path):
    for name, weights in (("dae/cifar10+long", ("victim",)), ("dae/resnet20/dae/cifar10+long", ("victim", "purifier"))):
        for item in (NAMES[name], CPU_NAMES[name]):
            assert item.weights == dict.fromkeys(weights, "+long")
            assert all(f"--{part}-weights +long" in item.command() for part in weights)
    assert CPU_NAMES["dae/cifar10+long"].file == "purifier-dae-cifar10+long.safetensors"
    assert NAMES["dae/resnet20/dae/cifar10+long"].file == "finetuner-dae-resnet20-dae-cifar10+long.safetensors"


def test_every_measured_table_has_all_its_weights_from_the_plan():
    declared = registry().tables
    whole = {name for name, table in declared.items() if not table.not_run and not table.needs}  # no editions for CPUs
    assert {item.table for item in TABLES} == whole
    (cache_dir() / "weights").mkdir(parents=True)
    for item in TABLES:
        table = declared[item.table]
        assert table.dataset == item.dataset
        files = [cache_dir() / "weights" / NAMES[name].file for name in closure(item)]
        for file in files:
            file.touch()
        assert find_missing(table, registry()) == {}, item.name
        for file in files:
            file.unlink()


def test_estimates_grow_with_the_work():
    small, large = ([("resnet18", passes)] for passes in (3, 30))
    assert seconds(small, 45_000, 10, 512, True) < seconds(small, 45_000, 10, 512, False)
    assert seconds(small, 45_000, 10, 512, True) < seconds(large, 45_000, 10, 512, True)
    assert seconds(small, 45_000, 10, 512, True) < seconds(small, 45_000, 20, 512, True)


def test_a_trial_has_fewer_epochs_of_both_stages():
    item = next(item for item in TRAININGS if item.stage_name == "unet_gan")
    tried = options_of(item, 0.1)
    assert (tried["epochs"], tried["post_epochs"]) == (1, 1)
    assert options_of(item, 1.0) == dict(item.options)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now

    def pause(self, taken):
        self.now += 1.0


class Fake:
    """Takes its item's seconds, times `slow`; fails as often as it is told to."""

    stopped = ()

    def __init__(self, item, clock, slow, failures):
        self.item, self.clock, self.failures = item, clock, failures
        self.ends = clock() + item.seconds * slow

    def poll(self):
        if self.clock() < self.ends:
            return None
        if self.failures.get(self.item.name, 0) > 0:
            self.failures[self.item.name] -= 1
            return False, "exit code 1"
        return True, "fine"

    def progress(self):
        return "50%"

    def interrupt(self):
        Fake.stopped = (*Fake.stopped, self.item.name)

    def stop(self):
        pass


def trained(name, rank, taken=10.0, needs=(), after=()):
    return Train(
        name=name,
        dataset="mnist",
        seconds=taken,
        rank=rank,
        needs=needs,
        after=after,
        stage="victim",
        stage_name="mlp",
        options={},
    )


def carried_out(
    plan, budget=math.inf, jobs=1, slow=1.0, failures=None, done=(), unable=(), available=lambda name: True
):
    clock, order, Fake.stopped = Clock(), [], ()

    def start(item):
        order.append(item.name)
        if item.name in unable:
            raise OSError(errno.ENOSPC, "No space left on device")
        return Fake(item, clock, slow, failures if failures is not None else {})

    schedule = Schedule(
        plan,
        budget=budget,
        jobs=jobs,
        done=dict.fromkeys(done, "before"),
        available=available,
        start=start,
        say=lambda line: None,
        clock=clock,
        pause=clock.pause,
    )
    schedule.run()
    return order, {name: record.status for name, record in schedule.records.items()}


def test_rank_decides_and_what_does_not_fit_is_left_for_what_does():
    plan = [trained("long", 2, 100), trained("short", 3), trained("first", 1)]
    order, status = carried_out(plan, budget=30)
    assert order == ["first", "short"]
    assert status == {"first": "done", "long": "waiting", "short": "done"}


def test_estimates_are_corrected_by_what_was_measured():
    plan = [trained(str(number), number) for number in range(4)]
    order, status = carried_out(plan, budget=75, slow=2.0)  # 3 x 20 s; the fourth looks like 10 s and would take 20
    assert order == ["0", "1", "2"]
    assert status["3"] == "waiting"


def test_what_runs_at_the_end_of_the_budget_is_interrupted():
    _, status = carried_out([trained("a", 1, 10)], budget=15, slow=5.0)
    assert status == {"a": "cut off"}
    assert Fake.stopped == ("a",)


def test_a_table_is_begun_where_there_is_time_for_some_of_its_cells():
    table = Measure(name="table", dataset="mnist", seconds=500, rank=1, table="a/table-1")
    assert carried_out([table], budget=100)[1] == {"table": "cut off"}
    assert carried_out([table], budget=50)[1] == {"table": "waiting"}


def test_a_failure_is_tried_again_and_stops_only_what_needs_it():
    plan = [trained("broken", 1), trained("child", 2, needs=("broken",)), trained("other", 3)]
    order, status = carried_out(plan, failures={"broken": 9})
    assert order == ["broken", "other", "broken"]
    assert status == {"broken": "failed", "child": "waiting", "other": "done"}
    assert carried_out(plan, failures={"broken": 1})[1] == dict.fromkeys(("broken", "child", "other"), "done")


def test_what_does_not_even_begin_fails_and_the_others_go_on():
    plan = [trained("full disk", 1), trained("other", 2)]
    order, status = carried_out(plan, unable=("full disk",))
    assert order == ["full disk", "other", "full disk"]
    assert status == {"full disk": "failed", "other": "done"}


def test_a_table_waits_for_what_is_to_come_and_not_for_what_is_not():
    table = trained("table", 9, needs=("victim",), after=("late", "too long"))
    plan = [trained("victim", 1), trained("late", 2, 20), trained("too long", 3, 500), table]
    order, status = carried_out(plan, budget=100, jobs=4)
    assert order == ["victim", "late", "table"]
    assert status["too long"] == "waiting"


def test_what_was_done_before_is_not_done_again_and_counts_as_a_need():
    order, _ = carried_out([trained("a", 1), trained("b", 2, needs=("a",))], done=("a",))
    assert order == ["b"]


def test_data_that_comes_later_is_waited_for():
    looks = iter(range(100))
    _, status = carried_out([trained("a", 1)], budget=100, available=lambda name: next(looks) > 20)
    assert status == {"a": "done"}


def file(path, size, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes((seed + i * i // 7) % 251 for i in range(1000)) * (size // 1000))
    return path


def test_parcels_split_large_files_keep_to_every_limit_and_arrive_whole(tmp_path):
    sizes = {"a": 5000, "deep/b": 400_000, "c": 1000, "empty": 0}
    files = [(name, file(tmp_path / "from" / name, size, seed)) for seed, (name, size) in enumerate(sizes.items())]
    ledger, rounds = tmp_path / "ledger.json", 0
    left = True
    while left:
        packed = pack(files, tmp_path / "parts", Limits(part=PART, parts=2, total=2 * PART), ledger)
        assert len(packed.parts) <= 2 and packed.size <= 2 * PART
        assert all(part.stat().st_size <= PART for part in packed.parts)
        left, rounds = packed.left, rounds + 1
    assert rounds == 2
    assert pack(files, tmp_path / "parts", Limits(part=PART), ledger).parts == ()  # nothing is new
    written, incomplete = unpack([tmp_path / "parts"], lambda name: tmp_path / "to" / name)
    assert (sorted(written), incomplete) == (sorted(sizes), [])
    assert all((tmp_path / "to" / name).read_bytes() == path.read_bytes() for name, path in files)


def test_a_file_that_changed_is_sent_again_and_the_last_version_wins(tmp_path):
    path, ledger = file(tmp_path / "a", 3000, 1), tmp_path / "ledger.json"
    pack([("a", path)], tmp_path / "parts", Limits(part=PART), ledger)
    changed = file(path, 2000, 2).read_bytes()
    pack([("a", path)], tmp_path / "parts", Limits(part=PART), ledger)
    unpack([tmp_path / "parts"], lambda name: tmp_path / "to" / name)
    assert (tmp_path / "to" / "a").read_bytes() == changed


def test_the_newest_version_wins_in_whichever_folder_its_part_lies(tmp_path, monkeypatch):
    work, limits = tmp_path / "work", Limits(part=PART)
    settings = Settings(work=work)
    for name in ("log.txt", "summary.txt"):
        file(work / name, 100_000, 1)
    first = train_all.parcel(settings, tmp_path / "out", limits, checkpoints=False, again=False)
    changed = file(work / "summary.txt", 2000, 2).read_bytes()
    monkeypatch.setattr(time, "time_ns", lambda: 5)  # the clock was put back
    again = train_all.parcel(settings, tmp_path / "out2", limits, checkpoints=False, again=True)
    assert len(first.parts) == 2 and not {part.name for part in first.parts} & {part.name for part in again.parts}
    again.parts[0].rename(tmp_path / "out2" / "part-0001.tar")
    for folders in (["out", "out2"], ["out2", "out"]):
        unpack([tmp_path / folder for folder in folders], lambda name: tmp_path / "to" / name)
        assert (tmp_path / "to" / "summary.txt").read_bytes() == changed


def test_a_file_that_became_what_it_was_before_ends_as_that(tmp_path):
    ledger, path = tmp_path / "ledger.json", tmp_path / "a"
    for seed in (1, 2, 1):
        last = file(path, 3000, seed).read_bytes()
        pack([("a", path)], tmp_path / "parts", Limits(part=PART), ledger)
    unpack([tmp_path / "parts"], lambda name: tmp_path / "to" / name)
    assert (tmp_path / "to" / "a").read_bytes() == last


def test_parts_that_do_not_say_when_they_were_packed_are_taken_folder_by_folder(tmp_path):
    sent_by_a_stranger(tmp_path / "one", "a", data=b"former")
    sent_by_a_stranger(tmp_path / "two", "a", data=b"latter")
    with pytest.raises(DataError, match="which is the newer"):
        unpack([tmp_path / "one", tmp_path / "two"], lambda name: tmp_path / name)
    for folder in ("one", "two"):
        unpack([tmp_path / folder], lambda name: tmp_path / name)
    assert (tmp_path / "a").read_bytes() == b"latter"


class Stopping(io.BytesIO):
    """A file during whose reading something happens."""

    def __init__(self, data, error):
        super().__init__(data)
        self._error, self._left = error, 2  # looks at it: its hash, and some of it into a part

    def seek(self, offset, whence=io.SEEK_SET):
        self._left -= whence == io.SEEK_SET
        if self._left < 0:
            raise AssertionError("more was sought than expected")
        return super().seek(offset, whence)

    def read(self, size=-1):
        if self._left == 0:
            raise self._error
        return super().read(size)


@pytest.mark.parametrize(
    ("error", "raised"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "full"), WriteError)]
)
def test_what_ends_a_round_early_leaves_whole_parts_alone(tmp_path, monkeypatch, error, raised):
    sizes = {"a": 100_000, "b": 100_000, "c": 100_000}
    files = [(name, file(tmp_path / "from" / name, size, seed)) for seed, (name, size) in enumerate(sizes.items())]
    out, ledger = tmp_path / "parts", tmp_path / "ledger.json"
    opening = parcels._snapshot
    with monkeypatch.context() as patch:
        broken = lambda path: Stopping(path.read_bytes(), error) if path.name == "b" else opening(path)  # noqa: E731
        patch.setattr(parcels, "_snapshot", broken)
        with pytest.raises(raised):
            pack(files, out, Limits(part=PART), ledger)
        assert [path.name for path in out.iterdir()] == ["part-0001.tar"]
        with pytest.raises(raised):
            pack(files, tmp_path / "no ledger", Limits(part=PART))
        assert list((tmp_path / "no ledger").iterdir()) == []
    packed = pack(files, out, Limits(part=PART), ledger)
    assert [part.name for part in packed.parts] == ["part-0002.tar", "part-0003.tar"]  # the first was not sent twice
    written, incomplete = unpack([out], lambda name: tmp_path / "to" / name)
    assert (sorted(written), incomplete) == (sorted(sizes), [])


def test_a_split_that_was_stopped_is_tried_again_in_the_same_folder(tmp_path, monkeypatch, capsys):
    file(tmp_path / "data" / "large", 300_000, 0)
    command = ["split", str(tmp_path / "data"), str(tmp_path / "parts"), "--most-mib", "0.125"]
    renaming, renamed = Path.replace, []

    def replace(path, target):
        renamed.append(target)
        if len(renamed) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return renaming(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        assert pack_data.main(command) == 2
    assert "No space left" in capsys.readouterr().err
    assert list((tmp_path / "parts").iterdir()) == []
    assert pack_data.main(command) == 0
    assert pack_data.main(["join", str(tmp_path / "parts"), str(tmp_path / "to")]) == 0


def test_missing_and_damaged_parts_are_named(tmp_path, capsys):
    file(tmp_path / "data" / "large", 300_000, 0)
    assert pack_data.main(["split", str(tmp_path / "data"), str(tmp_path / "parts"), "--most-mib", "0.125"]) == 0
    parts = sorted((tmp_path / "parts").glob("*.tar"))
    assert len(parts) == 3
    kept = parts[1].read_bytes()
    parts[1].unlink()
    assert pack_data.main(["join", str(tmp_path / "parts"), str(tmp_path / "to")]) == 2
    assert "large" in capsys.readouterr().err
    parts[1].write_bytes(kept[:5000])
    with pytest.raises(DataError, match="damaged"):
        unpack([tmp_path / "parts"], lambda name: tmp_path / name)
    flipped = bytearray(kept)
    flipped[2000] ^= 1
    parts[1].write_bytes(flipped)
    with pytest.raises(DataError, match="checksum"):
        unpack([tmp_path / "parts"], lambda name: tmp_path / name)
    parts[1].write_bytes(kept)
    assert pack_data.main(["join", str(tmp_path / "parts"), str(tmp_path / "to")]) == 0
    assert (tmp_path / "to" / "large").read_bytes() == (tmp_path / "data" / "large").read_bytes()


def sent_by_a_stranger(folder, name, member="m", link=None, data=b"theirs", **claims):
    """Write a part whose manifest names a file as somebody else likes."""
    piece = {"name": name, "size": 6, "sha256": hashlib.sha256(data).hexdigest(), "offset": 0, "length": 6}
    text = json.dumps([{**piece, "member": member, **claims}]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "part-0001.tar", "w") as tar:
        for name_in_tar, content in ((member, data), ("manifest.json", text)):
            info = tarfile.TarInfo(name_in_tar)
            if link is not None and name_in_tar == member:
                info.type, info.linkname = link, str(folder / "secret")
            info.size = 0 if info.type != tarfile.REGTYPE else len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    "name",
    [
        "cache//{0}/x",
        "/{0}/x",
        "cache/../x",
        "../x",
        "..",
        "",
        ".",
        "a/../../x",
        "cache/",
        "a\\b",
        "c:x",
        "a\0b",
        "linked/x",
        "cache/linked/x",
    ],
)
def test_no_name_in_a_part_leads_out_of_its_folder(tmp_path, monkeypatch, capsys, name):
    outside, work, cache = tmp_path / "outside", tmp_path / "work", tmp_path / "own"
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(cache))
    for folder in (outside, work, cache):
        folder.mkdir()
    for folder in (work, cache):
        (folder / "linked").symlink_to(outside)
    sent_by_a_stranger(tmp_path / "parts", name.format(str(outside).lstrip("/")))
    assert train_all.main(["--unpack", str(tmp_path / "parts"), "--work", str(work)]) == 2
    assert "error: " in capsys.readouterr().err
    everything = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".tar"]
    assert everything == []


@pytest.mark.parametrize(
    "claims",
    [
        {"link": tarfile.SYMTYPE},
        {"link": tarfile.LNKTYPE},
        {"link": tarfile.FIFOTYPE},
        {"offset": -1},
        {"length": 7},
        {"size": "six"},
        {"size": 2**62},
        {"sha256": 3},
    ],
)
def test_parts_that_are_no_parts_end_in_a_line(tmp_path, capsys, claims):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "secret").write_text("mine")
    sent_by_a_stranger(tmp_path / "parts", **{"name": "a", **claims})
    assert pack_data.main(["join", str(tmp_path / "parts"), str(tmp_path / "to")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "to" / "a").exists()


def test_packed_weights_go_to_the_cache_and_do_not_replace_others(tmp_path, capsys):
    work = tmp_path / "work"
    item = TRAININGS[0]
    made = file(work / "cache" / "weights" / item.file, 200_000, 1).read_bytes()
    file(work / "summary.txt", 1000, 2)
    settings = Settings(work=work)
    train_all.parcel(settings, tmp_path / "parts", Limits(part=PART), checkpoints=False, again=False)
    home = cache_dir() / "weights" / item.file
    file(home, 1000, 3)
    bring = ["--unpack", str(tmp_path / "parts"), "--work", str(tmp_path / "home")]
    assert train_all.main(bring) == 0
    assert home.stat().st_size == 1000 and "left as they are" in capsys.readouterr().out
    assert train_all.main([*bring, "--replace"]) == 0
    assert home.read_bytes() == made
    assert (tmp_path / "home" / "summary.txt").is_file()


def test_weights_of_which_a_part_is_missing_are_named_with_a_code_of_their_own(tmp_path, capsys):
    work, item = tmp_path / "work", TRAININGS[0]
    file(work / "cache" / "weights" / item.file, 300_000, 1)
    packed = train_all.parcel(
        Settings(work=work), tmp_path / "parts", Limits(part=PART), checkpoints=False, again=False
    )
    packed.parts[1].unlink()
    assert train_all.main(["--unpack", str(tmp_path / "parts"), "--work", str(tmp_path / "home")]) == 3
    assert f"parts are missing: cache/weights/{item.file}" in capsys.readouterr().out


class Broken:
    """An item that fails."""

    def __init__(self, item, settings):
        pass

    def poll(self):
        return False, "exit code 1"

    interrupt = stop = progress = lambda self: "begun"


def test_a_failed_item_is_no_exit_code_0(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_all, "_import_now", lambda: None)
    monkeypatch.setattr(train_all, "Process", Broken)
    command = ["--only", "mlp/*", "apudae/table-2", "--work", str(tmp_path / "work"), "--spawn"]
    assert train_all.main(command) == 3
    kept = {one["item"]: one["status"] for one in json.loads((tmp_path / "work" / "summary.json").read_text())}
    assert kept == {"mlp/mnist": "failed", "apudae/table-2": "waiting"}
    assert "left" in (tmp_path / "work" / "summary.txt").read_text()
    with pytest.raises(SystemExit) as stopped:
        train_all.main(["--help"])
    assert stopped.value.code == 0 and "3 an item failed" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (MemoryError, None)])
def test_there_is_a_summary_whatever_ends_the_run(tmp_path, monkeypatch, error, code):
    def poll(self):
        raise error

    monkeypatch.setattr(train_all, "_import_now", lambda: None)
    monkeypatch.setattr(train_all, "Process", Broken)
    monkeypatch.setattr(Broken, "poll", poll)
    command = ["--only", "mlp/mnist", "--work", str(tmp_path / "work"), "--spawn"]
    if code is None:
        with pytest.raises(error):
            train_all.main(command)
    else:
        assert train_all.main(command) == code
    assert json.loads((tmp_path / "work" / "summary.json").read_text())[0]["status"] == "cut off"
    assert "cut off" in (tmp_path / "work" / "summary.txt").read_text()


def test_a_full_disk_takes_the_log_and_not_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(train_all, "_import_now", lambda: None)
    monkeypatch.setattr(train_all, "Process", Broken)
    opening = Path.open

    def full(path, mode="r", **how):
        if path.name == "log.txt":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opening(path, mode, **how)

    monkeypatch.setattr(Path, "open", full)
    assert train_all.main(["--only", "mlp/mnist", "--work", str(tmp_path / "work"), "--spawn"]) == 3
    assert "failed" in (tmp_path / "work" / "summary.txt").read_text()


def test_the_plan_is_listed_and_wrong_input_is_refused(capsys):
    assert train_all.main(["--list", "--only", "resnet18/*"]) == 0
    assert "defend train victim resnet18 --dataset cifar10" in capsys.readouterr().out
    assert train_all.main(["--only", "resnet19/*"]) == 2
    assert train_all.main(["--scale", "0"]) == 2
    assert "did you mean 'resnet18/cifar10'?" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="names no item"):
        train_all.choose(["nothing"])
