"""samples or an image bucket + checkpoint -> predictions (and PCKh where labels exist)"""

from posepipe import cli
from posepipe.config import ScoreConfig


def main() -> None:
    settings = cli.parse(ScoreConfig)
    with cli.user_errors():
        from posepipe import cluster, scoring

        cluster.connect()
        print(scoring.run(settings))


if __name__ == "__main__":
    main()
