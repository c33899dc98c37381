"""`python -m cytomad_lib COMMAND` is the command `cytomad COMMAND`."""

from cytomad_lib.cli import main

if __name__ == "__main__":
    main()
