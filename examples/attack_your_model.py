"""Your own model, attacked: what is left of it, and whether that figure can be believed."""

import defend
from my_model import load

model = load()
images, labels = defend.dataset("digits").tensors("test", limit=100)  # yours: a Dataset, DataLoader, folder or tensors

found = defend.evaluate(model, (images, labels), eps=0.1, progress=False)
print(found)  # the table; `found.page("report.html")` writes the page

worst = found.worst_case
print(
    f"\n{100 * worst.accuracy:.0f} % of {worst.n} images are left; checks that failed: {[c.name for c in found.failed]}"
)
