"""Where images and masks come from."""

import os

# albumentations asks a package index for a newer version of itself at import; a training run must not need a network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
