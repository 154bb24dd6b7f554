"""Plugins are found by their entry points; a broken one is named, and the others go on working."""

import importlib.metadata
import io
import subprocess
import sys

import pytest
import timm
from rich.console import Console

from defend.errors import ConfigError, PluginError, UnknownNameError
from defend.plugins import Failure, Registry
from defend.report import catalogue
from defend.victims.plugin import timm_models

HEAD = "from defend import StageSpec, hookimpl, option, options\n\n"
BLUR = HEAD + (
    "@options\nclass Blur:\n    steps: int = option(3, help='steps', at_least=1)\n\n"
    "@hookimpl\ndef defend_purifiers():\n"
    "    return [StageSpec(name='blur', summary='Gaussian blur', build='good_blur.model:build', config=Blur)]\n"
)


def hook(name, body):
    return f"{HEAD}@hookimpl\ndef {name}:\n    {body}\n"


def spec(name):
    return f"StageSpec(name={name!r}, summary='a test', build='nowhere.model:build')"


class Site:
    """A folder of installed distributions, each one module with an entry point in the group "defend"."""

    def __init__(self, path):
        self.path = path
        self.modules = []

    def install(self, distribution, source):
        module = distribution.replace("-", "_")
        self.modules.append(module)
        (self.path / f"{module}.py").write_text(source, encoding="utf-8")
        info = self.path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[defend]\n{module} = {module}\n", encoding="utf-8")

    def registry(self):
        found = importlib.metadata.distributions(path=[str(self.path)])
        points = [point for distribution in found for point in distribution.entry_points]
        return Registry(entry_points=sorted(points, key=lambda point: point.name))


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    installed = Site(tmp_path)
    yield installed
    for module in installed.modules:
        sys.modules.pop(module, None)


def names(registry, stage):
    return [entry.spec.name for entry in registry.entries(stage)]


def test_a_plugin_is_found_by_its_entry_point(site):
    site.install("good-blur", BLUR)
    registry = site.registry()
    found = registry.find("purifier", "blur")
    assert (found.name, found.member, found.entry.origin) == ("blur", None, "good-blur")
    assert found.config({"steps": "7"}).steps == 7
    assert registry.versions == {"good-blur": "1.0"}
    assert registry.failures == []


def test_options_of_a_plugin_are_checked_in_its_name(site):
    site.install("good-blur", BLUR)
    with pytest.raises(ConfigError, match="purifier blur: steps=0 is out of range: expected at least 1"):
        site.registry().find("purifier", "blur").config({"steps": 0})


def test_a_plugin_without_hooks_offers_nothing(site):
    site.install("quiet-plugin", "")
    registry = site.registry()
    assert registry.versions == {"quiet-plugin": "1.0"}
    assert (names(registry, "purifier"), registry.failures) == ([], [])


def test_core_offers_its_own_stages_through_the_same_hooks():
    registry = Registry(entry_points=[])
    assert names(registry, "dataset") == [
        "arrays",
        "cifar10",
        "digits",
        "fashion_mnist",
        "hf",
        "imagefolder",
        "imagenet",
        "mnist",
    ]
    assert {"noise", "fgsm", "pgd"} <= set(names(registry, "attack"))
    assert {entry.origin for entry in registry.all_entries()} == {"defend-core"}


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("raise RuntimeError('no licence\\nfound')", "RuntimeError: no licence found"),
        ("def broken(", "SyntaxError"),
        (hook("defend_purifiers(config)", "return []"), "{'config'} are declared in the hookimpl but can not be found"),
        (hook("defend_purifierz()", "return []"), "unknown hook 'defend_purifierz'"),
        (hook("defend_purifiers()", "return ['blur']"), "TypeError: defend_purifiers returned str, not StageSpec"),
        (hook("defend_purifiers()", "return 5"), "TypeError: 'int' object is not iterable"),
        (hook("defend_purifiers()", "raise KeyError"), "KeyError: no message"),
        (hook("defend_purifiers()", "raise SystemExit(0)"), "SystemExit: 0"),
        ("import sys; sys.exit()", "SystemExit: "),
        ("raise KeyboardInterrupt", "KeyboardInterrupt: no message"),
        ("raise BaseException('bare')", "BaseException: bare"),
        ("class Mute(Exception):\n    __str__ = None\nraise Mute", "Mute: no message"),
        (
            hook("defend_victims()", "return [StageSpec(name='v', summary='', build='a:b', weights=3)]"),
            "TypeError: victim v: weights=3, expected",
        ),
        (
            hook(
                "defend_victims()", "return [StageSpec(name='v', summary='', build='a:b', weights='no.such.package')]"
            ),
            "PluginError: victim v: package 'no.such.package' with the shipped weights is missing",
        ),
        (hook("defend_detectors()", f"return [{spec('My Blur')}]"), "name='My Blur' is not lower-case letters"),
        (
            hook("defend_victims()", "return [StageSpec(name='x', summary='', build='a.b')]"),
            "build='a.b' is not of the form 'package.module:function'",
        ),
    ],
)
def test_a_broken_plugin_is_named_with_its_cause_and_the_others_work(site, source, cause):
    site.install("broken-one", source)
    site.install("good-blur", BLUR)
    site.install("another-good", hook("defend_detectors()", f"return [{spec('watch')}]"))
    registry = site.registry()
    (failure,) = registry.failures
    assert isinstance(failure, Failure)
    assert failure.plugin == "broken-one"
    assert cause in failure.cause
    assert "\n" not in failure.cause
    assert (names(registry, "purifier"), names(registry, "detector")) == (["blur"], ["watch"])
    assert sorted(registry.versions) == ["another-good", "good-blur"]


def test_a_plugin_that_fails_halfway_offers_nothing(site):
    second = f"@hookimpl\ndef defend_detectors():\n    return [{spec('watch')}, None]\n"
    site.install("half-good", hook("defend_purifiers()", f"return [{spec('blur')}]") + second)
    registry = site.registry()
    assert [failure.plugin for failure in registry.failures] == ["half-good"]
    assert names(registry, "purifier") == names(registry, "detector") == []


def test_an_unknown_name_mentions_the_plugins_that_failed(site):
    site.install("broken-one", "raise RuntimeError('no licence')")
    with pytest.raises(UnknownNameError, match="note: broken-one failed to load: RuntimeError: no licence"):
        site.registry().find("purifier", "blur")


def test_two_plugins_with_one_name_in_one_stage_are_both_named_and_the_rest_works(site):
    site.install("first-blur", hook("defend_purifiers()", f"return [{spec('blur')}, {spec('sharp')}]"))
    site.install("second-blur", hook("defend_purifiers()", f"return [{spec('blur')}, {spec('soft')}]"))
    registry = site.registry()
    with pytest.raises(PluginError, match="purifier 'blur' is offered by both first-blur and second-blur"):
        registry.find("purifier", "blur")
    assert registry.find("purifier", "sharp").entry.origin == "first-blur"
    assert registry.find("purifier", "soft").entry.origin == "second-blur"
    assert "offered by both" in registry.failures[0].cause  # `defend list` says so


def test_a_plugin_that_offers_a_name_twice_is_told(site):
    site.install("twice", hook("defend_purifiers()", f"return [{spec('blur')}, {spec('blur')}]"))
    with pytest.raises(PluginError, match="purifier 'blur' is offered by twice twice"):
        site.registry().find("purifier", "blur")


def test_a_plugin_cannot_replace_what_core_offers(site):
    site.install("my-pgd", hook("defend_attacks()", f"return [{spec('pgd')}]"))
    with pytest.raises(PluginError, match="attack 'pgd' is offered by both defend-core and my-pgd"):
        site.registry().find("attack", "pgd")
    assert site.registry().find("attack", "fgsm").entry.origin == "defend-core"


def test_a_plugin_cannot_take_the_name_of_a_familys_member(site):
    site.install("my-net", hook("defend_victims()", f"return [{spec('resnet18')}]"))
    registry = site.registry()
    with pytest.raises(PluginError, match=r"'resnet18' is offered by both my-net and .*timm.*timm:resnet18"):
        registry.find("victim", "resnet18")
    assert registry.find("victim", "timm:resnet18").spec.name == "timm"
    assert registry.find("victim", "resnet34").spec.name == "timm"


def family(name, members):
    made = f"StageSpec(name={name!r}, summary='', build='a:b', members='{name}_members:names', member_option='model')"
    return hook("defend_victims()", f"return [{made}]"), f"def names():\n    {members}\n"


def test_two_families_with_one_member_are_both_named_and_one_that_fails_is_noted(site):
    for name, members in (("one", "return ('odd', 'even')"), ("two", "return ('odd',)"), ("bad", "raise OSError('x')")):
        plugin, module = family(name, members)
        site.install(f"family-{name}", plugin)
        (site.path / f"{name}_members.py").write_text(module)
    registry = site.registry()
    with pytest.raises(PluginError, match=r"'odd' is offered by both family-one \(family one\) and family-two"):
        registry.find("victim", "odd")
    assert registry.find("victim", "even").spec.name == "one"
    assert registry.find("victim", "two:odd").spec.name == "two"
    with pytest.raises(UnknownNameError, match="note: family-bad failed to load: the members of bad: OSError: x"):
        registry.find("victim", "oddd")


@pytest.mark.parametrize(
    ("threats", "cause"),
    [
        ("('oblivous',)", "attack bt: unknown threat 'oblivous': did you mean 'oblivious'"),
        ("('oblivious', 'adaptiv')", "attack bt: unknown threat 'adaptiv'"),
        ("'oblivious'", "is one text, expected a tuple"),
    ],
)
def test_an_attack_for_a_threat_that_there_is_none_of_is_told(site, threats, cause):
    made = f"StageSpec(name='bt', summary='', build='a:b', threats={threats})"
    site.install("my-attack", hook("defend_attacks()", f"return [{made}]"))
    with pytest.raises(UnknownNameError, match="unknown attack 'bt'") as caught:
        site.registry().find("attack", "bt")
    assert cause in str(caught.value)


def test_one_name_in_two_stages_is_no_conflict(site):
    second = f"\n@hookimpl\ndef defend_detectors():\n    return [{spec('puvae')}]\n"
    site.install("puvae-both", hook("defend_purifiers()", f"return [{spec('puvae')}]") + second)
    registry = site.registry()
    assert registry.find("purifier", "puvae").entry.stage == "purifier"
    assert registry.find("detector", "puvae").entry.stage == "detector"


@pytest.mark.parametrize(
    ("stage", "name", "nearest"),
    [
        ("attack", "pdg", "pgd"),
        ("attack", "FGSM", "fgsm"),
        ("dataset", "digit", "digits"),
        ("victim", "resnet8", "resnet18"),
        ("victim", "timm:resnet8", "resnet18"),
        ("victim", "tinn:resnet18", "resnet18"),
    ],
)
def test_an_unknown_name_offers_the_nearest(stage, name, nearest):
    with pytest.raises(UnknownNameError, match=f"unknown {stage} '{name}': did you mean '{nearest}'"):
        Registry(entry_points=[]).find(stage, name)


def test_where_no_plugin_offers_a_stage_the_error_says_so():
    with pytest.raises(UnknownNameError, match="unknown purifier 'blur': none is installed"):
        Registry(entry_points=[]).find("purifier", "blur")


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18"])
def test_a_member_of_a_family_is_found_with_and_without_its_family(name):
    found = Registry(entry_points=[]).find("victim", name)
    assert (found.spec.name, found.member, found.name) == ("timm", "resnet18", "resnet18")
    assert found.config({"stem": "small"}).model == "resnet18"


def test_a_family_is_no_victim_by_itself():
    with pytest.raises(ConfigError, match="'timm' is a family: name one of its members"):
        Registry(entry_points=[]).find("victim", "timm")


def test_a_family_member_cannot_be_renamed_by_its_option():
    found = Registry(entry_points=[]).find("victim", "resnet18")
    with pytest.raises(ConfigError, match="model='resnet34' contradicts victim 'resnet18'"):
        found.config({"model": "resnet34"})


@pytest.mark.parametrize("name", ["timm:", "resnet18:timm"])
def test_a_name_that_is_no_victim(name):
    with pytest.raises(UnknownNameError, match=f"unknown victim '{name}'"):
        Registry(entry_points=[]).find("victim", name)


def test_every_model_of_timm_is_a_victim():
    assert sorted(timm_models()) == sorted(timm.list_models())


def test_looking_names_up_imports_neither_timm_nor_torch():
    code = (
        "import sys\n"
        "from defend.plugins import Registry\n"
        "Registry(entry_points=[]).find('victim', 'resnet18')\n"
        "sys.exit(', '.join({'timm', 'torch', 'sklearn'} & set(sys.modules)) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_the_users_own_interrupt_while_a_plugin_loads_ends_the_command(site):
    site.install("slow-plugin", "import signal\nsignal.raise_signal(signal.SIGINT)\n")
    code = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path.insert(0, {str(site.path)!r})\nfrom defend.cli import main\nmain(['list'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (130, "error: interrupted")


def test_what_a_plugin_says_is_no_markup(site):
    site.install(
        "loud-plugin", hook("defend_victims()", "return [StageSpec(name='v', summary='x [/b] [red]', build='a:b')]")
    )
    console = Console(file=io.StringIO(), width=200)
    plugins = site.registry()
    catalogue.print_listing(console, plugins, "victim")
    (shown,) = catalogue.descriptions(plugins, "v")
    catalogue.print_description(console, shown)
    assert console.file.getvalue().count("x [/b] [red]") == 2
