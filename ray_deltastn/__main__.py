"""`python -m ray_deltastn` runs the command `ray-deltastn`."""

import sys

from ray_deltastn.cli import main

if __name__ == "__main__":
    sys.exit(main())
