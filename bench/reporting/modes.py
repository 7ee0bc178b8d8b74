"""Modes: their order, their colours everywhere, and how figures call them."""

MODES = ("none", "remus", "colo", "colo++")
# Told apart by the colour-blind, and on black as on white. QEMU stands where `none` would.
COLOURS = {"none": "#8c959f", "remus": "#e69f00", "colo": "#4aa3df", "colo++": "#d55e00", "colo++ 4→1": "#9d4edd", "QEMU": "#8c959f"}


def name(mode):
    return mode.replace("+", "p").replace(" 4→1", "_shrunk")
