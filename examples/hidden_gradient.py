"""A purifier that looks robust, and is not: it rounds pixels, and rounding has no gradient.

Attacked through its own gradient nothing is found. The `bpda` threat takes the identity for it backwards, and the
check of gradients says what was wrong with the first figure.
"""

import defend
from my_model import load


def round_pixels(images):
    """Keep eight levels of grey."""
    return (images * 7).round() / 7


model, data = load(), defend.dataset("digits").tensors("test", limit=50)
settings = {"purifier": round_pixels, "eps": 0.1, "attacks": ["pgd"], "progress": False}

alone = defend.evaluate(model, data, threats=["adaptive"], **settings)
both = defend.evaluate(model, data, threats=["adaptive", "bpda"], **settings)

print(f"through its own gradient {100 * alone.worst_case.accuracy:.0f} % are left,")
print(f"but checks failed: {', '.join(check.name for check in alone.failed)};")
print(f"with the identity backwards {100 * both.worst_case.accuracy:.0f} % are left")
