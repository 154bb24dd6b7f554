"""Two defences, by name, before one victim: attacked once, judged both, told apart on the same images."""

import defend
from defend.records.compare import compare
from defend.records.run import from_records

config = defend.RunConfig(victim="resnet18", threats=("noise", "oblivious"), attacks=("noise", "fgsm"), limit=20)
arms = defend.alternatives(config, ["dae", "unet_gan"])  # a config for each purifier
outcomes = defend.run_arms(arms)

for arm, outcome in zip(arms, outcomes, strict=True):
    for row in outcome.report.rows:
        low, high = row.defended.ci95
        print(f"{arm.purifier:9} {row.key:16} {100 * row.defended.accuracy:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]")

runs = [from_records(arm.purifier, each.report, each.records) for arm, each in zip(arms, outcomes, strict=True)]
for row in compare(runs).rows:
    for pair in row.differences:
        print(f"{row.key.attack}: {100 * pair.difference:+.1f} points, p {pair.p_holm:.2f} (Holm)")
