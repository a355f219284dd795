"""python -m octavo_loadtest, and the console script."""


def main() -> None:
    # here and not above: each sending process imports this module again, and would load numpy and rich with it (0.5 s)
    from octavo_loadtest.cli import app

    app()


if __name__ == "__main__":
    main()
