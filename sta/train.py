"""`accelerate launch -m sta.train RECIPE --stage distill-pooled`: one stage on any number of processes."""

import sys

from sta.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
