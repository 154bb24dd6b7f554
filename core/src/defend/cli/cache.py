"""`defend cache`."""

from __future__ import annotations

from defend.cli.flags import JSON, print_json
from defend.cli.say import say
from defend.cli.usage import OUTPUT, command, option
from defend.errors import ConfigError
from defend.report.progress import open_console, show_count

CLEAR = option("--clear", "Delete all attacked images; weights stay.")
VERIFY = option("--verify", "Read and check every batch; delete those that are damaged.")


FORGET = option("--forget FILE", "Delete weights of your own, by their name here, so that shipped ones are taken.")


@command("cache", {"What to do": [CLEAR, VERIFY, FORGET], OUTPUT: [JSON]})
def cache_command(clear: bool, verify: bool, forget: str | None, as_json: bool) -> None:
    """Show the attacked images that are kept for later runs, and the weights that you trained.

    The least recently used go when there are more than $DEFEND_CACHE_LIMIT (2GB; 0 keeps none), in
    $DEFEND_CACHE_DIR/adversarial. What was made by other code, weights or options is never used.
    """
    from defend.plugins import registry
    from defend.report.cache import contents, print_contents, size
    from defend.store.store import Store
    from defend.weights import origin

    if clear and verify:
        raise ConfigError("--clear and --verify were both given: what is deleted need not be checked, give one")
    if forget is not None:
        if clear or verify:
            raise ConfigError(f"--forget {forget!r} was given with another thing to do: give one")
        gone = origin.forget(forget)
        print_json({"forgotten": str(gone)}) if as_json else say(f"Deleted {gone}")
        return
    store = Store.users()
    if clear:
        freed = store.clear()
        print_json({"freed": freed}) if as_json else say(f"Freed {size(freed)} in {store.folder}")
    elif verify:
        with show_count(open_console(stderr=True), "checking", len(store.entries()), quiet=as_json) as progress:
            found = store.verify(progress)
        if as_json:
            print_json({"checked": found.checked, "damaged": found.damaged, "freed": found.freed})
            return
        what = f"{found.damaged} damaged, deleted ({size(found.freed)})" if found.damaged else "none damaged"
        say(f"Checked {found.checked} batches in {store.folder}: {what}")
    else:
        own = origin.list_own(registry().all_packages())
        if as_json:
            print_json(contents(store, own))
        else:
            print_contents(open_console(), store, own)
