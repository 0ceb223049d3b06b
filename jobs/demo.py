"""all of it, on a generated MPII-shaped data set or on a real one"""

from posepipe import cli
from posepipe.config import DemoConfig


def main() -> None:
    settings = cli.parse(DemoConfig)
    with cli.user_errors():
        from posepipe import cluster, demo

        cluster.connect()
        print(demo.describe(demo.run(settings)))


if __name__ == "__main__":
    main()
