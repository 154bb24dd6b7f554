"""The attacks that core offers, through the same hook as any plugin's. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from defend.attacks.adapters.specs import families
from defend.attacks.options import (
    ApgdOptions,
    ApgdTargetedOptions,
    BimOptions,
    CwOptions,
    DetectorAwareOptions,
    FabOptions,
    FgsmOptions,
    FmnOptions,
    GivenOptions,
    HopSkipJumpOptions,
    JointOptions,
    MomentumOptions,
    PgdOptions,
    RfgsmOptions,
    SquareOptions,
    StandardOptions,
    VarianceOptions,
)
from defend.hookspecs import hookimpl
from defend.stages import Paper, StageSpec

AUTOATTACK = Paper(
    "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
    "Croce and Hein",
    2020,
    "arXiv:2003.01690",
)
PMA = Paper(
    "Towards Million-Scale Adversarial Robustness Evaluation With Stronger Individual Attacks",
    "Xie et al.",
    2024,
    "arXiv:2411.15210",
)


@hookimpl
def defend_attacks() -> Sequence[StageSpec]:
    """noise; fgsm, bim, pgd, apgd_*, fab_t, square, standard, in L2 too; rfgsm; cw; pgd_joint; libraries'."""
    return [
        StageSpec(
            name="noise",
            summary="uniform random noise of size eps",
            build="defend.attacks.noise:build",
            threats=("noise",),
        ),
        StageSpec(
            name="fgsm",
            summary="fast gradient sign method, one step (L-inf)",
            build="defend.attacks.single_step:fgsm",
            config=FgsmOptions,
            paper=Paper("Explaining and Harnessing Adversarial Examples", "Goodfellow et al.", 2015, "arXiv:1412.6572"),
        ),
        StageSpec(
            name="rfgsm",
            summary="random step, then FGSM (L-inf)",
            build="defend.attacks.single_step:rfgsm",
            config=RfgsmOptions,
            paper=Paper("Ensemble Adversarial Training", "Tramèr et al.", 2018, "arXiv:1705.07204"),
        ),
        StageSpec(
            name="bim",
            summary="basic iterative method (L-inf)",
            build="defend.attacks.iterated:bim",
            config=BimOptions,
            paper=Paper("Adversarial Examples in the Physical World", "Kurakin et al.", 2017, "arXiv:1607.02533"),
        ),
        StageSpec(
            name="pgd",
            summary="projected gradient descent, random start and restarts (L-inf)",
            build="defend.attacks.iterated:pgd",
            config=PgdOptions,
            paper=Paper(
                "Towards Deep Learning Models Resistant to Adversarial Attacks",
                "Madry et al.",
                2018,
                "arXiv:1706.06083",
            ),
        ),
        StageSpec(
            name="mi_fgsm",
            summary="steps along a running sum of gradients, which come over to other victims (L-inf)",
            build="defend.attacks.momentum:mi_fgsm",
            config=MomentumOptions,
            paper=Paper("Boosting Adversarial Attacks with Momentum", "Dong et al.", 2018, "arXiv:1710.06081"),
        ),
        StageSpec(
            name="vmi_fgsm",
            summary="mi_fgsm with gradients tuned by those around each point (L-inf)",
            build="defend.attacks.momentum:vmi_fgsm",
            config=VarianceOptions,
            paper=Paper(
                "Enhancing the Transferability of Adversarial Attacks through Variance Tuning",
                "Wang and He",
                2021,
                "arXiv:2103.15571",
            ),
        ),
        *(
            StageSpec(
                name=name,
                summary=summary,
                build=f"defend.attacks.{build}",
                config=config,
            )
            for name, summary, build, config in (
                ("fgsm_l2", "FGSM's one step, along the gradient itself (L2)", "single_step:fgsm_l2", FgsmOptions),
                ("bim_l2", "BIM with steps along the gradient itself (L2)", "iterated:bim_l2", BimOptions),
                ("pgd_l2", "PGD with steps along the gradient itself (L2)", "iterated:pgd_l2", PgdOptions),
            )
        ),
        *(
            spec
            for loss, what, paper in (
                ("ce", "cross-entropy", AUTOATTACK),
                ("dlr", "difference of logits ratio", AUTOATTACK),
                ("margin", "difference of logits", AUTOATTACK),
                ("pm", "difference of probabilities", PMA),
            )
            for spec in _in_both_norms(
                f"apgd_{loss}",
                f"Auto-PGD, a step size that adapts, on the {what}",
                (f"apgd:{loss}", f"apgd:{loss}_l2"),
                config=ApgdOptions,
                paper=paper,
            )
        ),
        *_in_both_norms(
            "apgd_t",
            "Auto-PGD towards one wrong class after another, nearest first",
            ("apgd_targeted:linf", "apgd_targeted:l2"),
            config=ApgdTargetedOptions,
            paper=Paper("MALT Powers Up Adversarial Attacks", "Melamed et al.", 2024, "arXiv:2407.02240"),
        ),
        *_in_both_norms(
            "fab_t",
            "FAB: small changes across the boundary to one wrong class after another",
            ("fab:linf", "fab:l2"),
            config=FabOptions,
            paper=Paper(
                "Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
                "Croce and Hein",
                2020,
                "arXiv:1907.02044",
            ),
        ),
        *_in_both_norms(
            "standard",
            "AutoAttack's standard: apgd_ce, apgd_t, fab_t, square, until an image is fooled",
            ("standard:linf", "standard:l2"),
            config=StandardOptions,
            paper=AUTOATTACK,
        ),
        StageSpec(
            name="cw",
            summary="Carlini and Wagner, minimal L2, clipped to the L-inf budget unless clip=none",
            build="defend.attacks.cw:build",
            config=CwOptions,
            paper=Paper(
                "Towards Evaluating the Robustness of Neural Networks", "Carlini and Wagner", 2017, "arXiv:1608.04644"
            ),
        ),
        *_in_both_norms(
            "fmn",
            "fast minimum-norm attack: the smallest change of each image, so accuracy at any eps",
            ("minimum_norm:linf", "minimum_norm:l2"),
            config=FmnOptions,
            paper=Paper(
                "Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints",
                "Pintor et al.",
                2021,
                "arXiv:2102.12827",
            ),
        ),
        *_in_both_norms(
            "square",
            "Square Attack: random search with answers alone",
            ("square:linf", "square:l2"),
            config=SquareOptions,
            paper=Paper(
                "Square Attack: a Query-efficient Black-box Adversarial Attack via Random Search",
                "Andriushchenko et al.",
                2020,
                "arXiv:1912.00049",
            ),
            threats=("query",),
        ),
        *_in_both_norms(
            "hsj",
            "HopSkipJump: the smallest change of each image, from labels alone",
            ("hop_skip_jump:linf", "hop_skip_jump:l2"),
            config=HopSkipJumpOptions,
            paper=Paper(
                "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack",
                "Chen et al.",
                2020,
                "arXiv:1904.02144",
            ),
            threats=("query",),
        ),
        StageSpec(
            name="pgd_joint",
            summary="PGD on the classifier's loss less the detector's score, its weight swept (L-inf)",
            build="defend.attacks.detector_aware:joint",
            config=JointOptions,
            paper=Paper(
                "Adversarial Examples Are Not Easily Detected: Bypassing Ten Detection Methods",
                "Carlini and Wagner",
                2017,
                "arXiv:1705.07263",
            ),
            threats=("detector-aware",),
        ),
        *(
            StageSpec(
                name=f"pgd_{name}",
                summary=f"PGD on the classifier while it is right, else on the detector{text} (L-inf)",
                build=f"defend.attacks.detector_aware:{name}",
                config=DetectorAwareOptions,
                paper=Paper(
                    "Evading Adversarial Example Detection Defenses with Orthogonal Projected Gradient Descent",
                    "Bryniarski et al.",
                    2021,
                    "arXiv:2106.15023",
                ),
                threats=("detector-aware",),
            )
            for name, text in (("selective", ""), ("orthogonal", ", each orthogonal to the other"))
        ),
        StageSpec(
            name="file",
            summary="images that somebody else made, for example file:adv.npz (adversarial, keys)",
            build="defend.attacks.given:build",
            config=GivenOptions,
            pattern=r".+\.npz",
            member_option="path",
            prefixed=True,
            threats=("given",),
        ),
        *families(),
    ]


def _in_both_norms(name: str, summary: str, builders: tuple[str, str], **more: Any) -> Iterator[StageSpec]:
    """Yield an attack in L-inf, and the same in L2, NAME_l2; `builders` are their "module:function" of this folder."""
    for mark, norm, builder in zip(("", "_l2"), ("L-inf", "L2"), builders, strict=True):
        yield StageSpec(name=f"{name}{mark}", summary=f"{summary} ({norm})", build=f"defend.attacks.{builder}", **more)
