"""`python -m multirnn` is the command `multirnn`."""

from multirnn.cli import main

if __name__ == "__main__":
    main()
