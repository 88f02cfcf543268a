"""`python -m sanawm_env` is the command `sanawm`."""

from sanawm_env.cli import main

if __name__ == "__main__":
    main()
