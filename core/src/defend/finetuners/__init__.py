"""The fine-tuner that core offers: adversarial training, the baseline that any defence should be compared with."""
