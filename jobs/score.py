"""samples or an image bucket + checkpoint -> predictions (and PCKh where labels exist)"""

from posepipe import config
from posepipe.config import ScoreConfig


def main() -> None:
    settings = config.parse(ScoreConfig)
    from posepipe import cluster, scoring

    with config.user_errors():
        cluster.connect()
        print(scoring.describe(scoring.score(settings), settings.predictions_uri))


if __name__ == "__main__":
    main()
