"""Exports: the selected images, their scores and the user's own fields in the formats that other tools read.

Each is a folder of its own with a README, a Croissant description and SHA256SUMS. They are written from the final
table and the image shards alone: no model is loaded, memory does not grow with the number of images, files are
written under temporary names and renamed, and the same results give the same bytes.
"""

# Format -> the module that writes it.
FORMATS = {
    "folder": "folder",
    "imagefolder": "imagefolder",
    "parquet": "parquet",
    "webdataset": "webdataset",
    "preferences": "preferences",
}
TRAINING = ("imagefolder", "parquet", "webdataset", "preferences")  # made for those who train on the pictures
MARKED = ("folder", "imagefolder", "webdataset")  # whose PNG files say themselves how they were made
CUT = ("parquet", "webdataset", "preferences")  # into files of at most so many bytes
SUMS = "SHA256SUMS"
VERSION = 2  # raise it when the code of an export changes what it writes
