"""Check 16, certificates: what is certified stands, and the attack that says so saw something."""

from __future__ import annotations

from defend.checks.common import Case, Findings, percent
from defend.checks.outcomes import TAIL
from defend.records.rows import REJECTED
from defend.util.statistics import at_least
from defend.values.report import Certified, CertifiedImage


def certificates(case: Case, found: Findings) -> None:
    """No vote may be turned within its certified radius: else certificate or vote is wrong.

    An abstention is no contradiction: near its radius a vote may well be as good as even.
    """
    certified = case.certified
    if certified is None or certified.attack is None:
        found.add("skip", "nothing is certified")
        return
    tried = [each for each in certified.images if _reach(each, certified)]
    turned = [each for each in tried if _turned(each, certified)]
    found.numbers |= {"tried": len(tried), "turned": [each.image for each in turned]}
    blind = float(certified.attack["blind"])
    if blind > 0:
        found.add(
            "warn",
            f"the attack on the vote never had a gradient that it could use of {percent(blind)} of the images: what it "
            "leaves says little",
        )
    if not tried:
        found.add("skip", "no image is certified as far as the smallest radius that the vote is attacked within")
        return
    text = f"an attack on the vote turns {len(turned)} of {len(tried)} within their certified radii"
    if not turned:
        found.add("pass", text)
        return
    # both votes may be wrong, the certificate's and that which judges the attacked image
    chance = at_least(len(turned), len(tried), 2 * certified.alpha)
    text += f", by chance at most once in {1 / max(chance, 1e-9):,.0f} such runs: certificate or vote is wrong"
    found.add("fail" if chance < TAIL else "warn", text)


def _reach(image: CertifiedImage, certified: Certified) -> list[int]:
    """Return the places of the radii that an image's vote was attacked within, and is certified for."""
    if image.predicted != image.label or not image.attacked:
        return []
    radii = [float(point["radius"]) for point in certified.curve]
    return [place for place, radius in enumerate(radii) if 0 < radius <= image.radius]


def _turned(image: CertifiedImage, certified: Certified) -> bool:
    return any(image.attacked[place] not in (image.label, REJECTED) for place in _reach(image, certified))
