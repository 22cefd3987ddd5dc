"""ADE20K, the scene parsing benchmark of 150 classes (Zhou et al., CVPR 2017)."""

from __future__ import annotations

from pathlib import Path

from datamodules.base import DataSource
from datamodules.files import FileSplit, existing_folder, existing_root, pair_by_stem
from protocol.labels import LabelSpace
from protocol.numbers import Text

NAMES = """
    wall;building;sky;floor;tree;ceiling;road;bed;windowpane;grass;cabinet;sidewalk;person;earth;door;table;mountain;
    plant;curtain;chair;car;water;painting;sofa;shelf;house;sea;mirror;rug;field;armchair;seat;fence;desk;rock;wardrobe;
    lamp;bathtub;railing;cushion;base;box;column;signboard;chest of drawers;counter;sand;sink;skyscraper;fireplace;
    refrigerator;grandstand;path;stairs;runway;case;pool table;pillow;screen door;stairway;river;bridge;bookcase;blind;
    coffee table;toilet;flower;book;hill;bench;countertop;stove;palm;kitchen island;computer;swivel chair;boat;bar;
    arcade machine;hovel;bus;towel;light;truck;tower;chandelier;awning;streetlight;booth;television receiver;airplane;
    dirt track;apparel;pole;land;bannister;escalator;ottoman;bottle;buffet;poster;stage;van;ship;fountain;conveyer belt;
    canopy;washer;plaything;swimming pool;stool;barrel;basket;waterfall;tent;bag;minibike;cradle;oven;ball;food;step;
    tank;trade name;microwave;pot;animal;bicycle;lake;dishwasher;screen;blanket;sculpture;hood;sconce;vase;
    traffic light;tray;ashcan;fan;pier;crt screen;plate;monitor;bulletin board;shower;radiator;glass;clock;flag
"""
CLASSES = tuple(name.strip() for name in NAMES.replace("\n", "").split(";"))
FOLDERS = {"train": "training", "val": "validation", "test": "validation"}
HOME = "python scripts/download.py ade20k fetches it"


class ADE20K(DataSource):
    """`<root>/{images,annotations}/{training,validation}`, or the same folders in `<root>/ADEChallengeData2016/`.

    Mask value 0 is "unlabelled": trained as background, and not scored unless `evaluate_unlabelled`.
    """

    name = "ade20k"

    def __init__(self, root: Text, evaluate_unlabelled: bool) -> None:
        """Args:
        root: the folder ADEChallengeData2016, or the one that holds it.
        evaluate_unlabelled: score value 0 as the class background (BACS); MiB and PLOP ignore it.
        """
        self.root = find_home(existing_root(root, HOME))
        names = dict(enumerate(CLASSES, start=1))
        self.labels = LabelSpace(names, background=0, background_is_evaluated=evaluate_unlabelled)

    def split(self, name: str) -> FileSplit:
        """The split "train", "val" or "test" (the validation images)."""
        folders = (self.root / kind / FOLDERS[name] for kind in ("images", "annotations"))
        images, masks = (existing_folder(folder, "root", HOME) for folder in folders)
        return pair_by_stem(self.root, images, masks)


def find_home(root: Path) -> Path:
    """The folder ADEChallengeData2016 for what a user gives as root."""
    inner = root / "ADEChallengeData2016"
    return inner if inner.is_dir() else root
