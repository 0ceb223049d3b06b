"""all of it, on a generated MPII-shaped data set or on a real one"""

from posepipe import cli
from posepipe.config import DemoConfig


def main() -> None:
    settings = cli.parse(DemoConfig)
    from posepipe import cluster, demo

    with cli.user_errors():
        cluster.connect()
        print(demo.describe(demo.run(settings)))


if __name__ == "__main__":
    main()
