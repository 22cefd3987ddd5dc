"""The means over classes that results.json holds for each task; not in metrics.py, because that imports torch."""

# Key in results.json, heading, definition.
MEANS = (
    ("miou", "mIoU", "mean IoU over all seen classes with background"),
    ("miou_nobg", "no bg", "over all seen classes without background"),
    ("miou_old", "old", "over the classes of earlier tasks, without background"),
    ("miou_new", "new", "over the classes of this task, without background"),
    ("miou_initial", "init", "over the classes of the first task, without background"),
    ("miou_initial_bg", "init+bg", "the same with background"),
    ("miou_added", "added", "over the classes of all later tasks"),
    ("pixel_accuracy", "acc", "share of the labelled pixels that are predicted right"),
)
