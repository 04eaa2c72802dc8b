"""Fetch Stanford Online Products, unpack it and write the split files."""

from pathlib import Path

from sacred import Experiment

from sop.archive import SOP_URL, official_md5, unpack, write_split
from sop.download import download
from utils.experiment import reports_errors, set_up

ex = set_up(Experiment("Prepare SOP"))


@ex.config
def config():
    sop_dir = "data/Stanford_Online_Products"  # the archive is kept in its parent folder
    sop_url = SOP_URL  # http, https or file
    sop_md5 = official_md5(sop_url)  # None: not checked
    train_file = "train.txt"
    test_file = "test.txt"


@ex.automain
@reports_errors
def main(sop_dir, sop_url, sop_md5, train_file, test_file):
    folder = Path(sop_dir)
    if not folder.is_dir():
        unpack(download(sop_url, folder.parent, sop_md5), folder)
    for name, file_name in (("train", train_file), ("test", test_file)):
        print(f"{folder / file_name}: {write_split(folder, name, file_name)} images")
