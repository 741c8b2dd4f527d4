"""`python -m persistlib`: the command line where no script is installed."""

from persistlib.cli.main import main

main()
