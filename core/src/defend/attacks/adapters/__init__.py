"""Other people's attacks behind the attack hook: foolbox, torchattacks and AutoAttack, each a family of names."""
