# SPDX-License-Identifier: Apache-2.0
"""`python -m sartor` is the command `sartor`."""

from sartor.cli import run

if __name__ == "__main__":
    run()
