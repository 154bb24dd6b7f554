"""What is asked for and what is reported, as frozen values without torch. Nothing here computes anything."""
