"""python -m octavo_loadtest"""

from octavo_loadtest.cli import main

if __name__ == "__main__":
    main()
