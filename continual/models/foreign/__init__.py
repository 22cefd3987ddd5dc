"""Networks in files of other projects, in the terms of this one: one file per source."""
