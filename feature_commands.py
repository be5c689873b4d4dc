"""The commands that look at the penultimate layer of several networks."""

from __future__ import annotations

from . import features
from .commands import OVERWRITE_FILE, Answer, Asked, Command, plain
from .models.feature_settings import FeatureShiftSettings, VisualizeSettings
from .models.settings import DataSettings
from .options import Option


def _visualize(asked: Asked) -> Answer:
    table = features.visualize(
        asked["networks"],
        asked.settings[DataSettings],
        asked.settings[VisualizeSettings],
        image=asked["image"],
        npz=asked["npz"],
        overwrite=asked["overwrite"],
        progress=True,
    )
    return Answer(data=plain(table), text=table.to_text())


def _feature_shift(asked: Asked) -> Answer:
    table = features.feature_shift(
        asked["networks"],
        asked.settings[DataSettings],
        asked.settings[FeatureShiftSettings],
        image=asked["image"],
        csv=asked["csv"],
        npz=asked["npz"],
        overwrite=asked["overwrite"],
        progress=True,
    )
    return Answer(data=plain(table), text=table.to_text())


NETWORKS = Option(
    name="networks",
    positional=True,
    many=True,
    default=(),
    required=True,
    metavar="NETWORK",
    help="sources (natural, robust, checkpoint files) or run folders, in the order shown",
)

FEATURE_COMMANDS = {
    "visualize": Command(
        help="raise units of the penultimate layer by ascent on the input, network beside network",
        run=_visualize,
        settings=(DataSettings, VisualizeSettings),
        options=(
            NETWORKS,
            Option(
                name="image",
                required=True,
                metavar="FILE.png",
                help="draw the starts, and where they end, into this file",
            ),
            Option(name="npz", metavar="FILE.npz", help="save images, units and activations as numbers into this file"),
            OVERWRITE_FILE,
        ),
    ),
    "feature-shift": Command(
        help="how far a random change of an image moves the penultimate features of each network",
        run=_feature_shift,
        settings=(DataSettings, FeatureShiftSettings),
        options=(
            NETWORKS,
            Option(name="image", metavar="FILE.png", help="draw the distributions into this file"),
            Option(name="csv", metavar="FILE.csv", help="write the table into this file"),
            Option(name="npz", metavar="FILE.npz", help="save the distances image by image into this file"),
            OVERWRITE_FILE,
        ),
    ),
}
