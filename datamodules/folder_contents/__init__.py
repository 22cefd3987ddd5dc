"""What a user's folder may hold: layouts, images with masks or outlines, classes; see datamodules/folder.py."""
