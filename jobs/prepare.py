"""raw MPII -> samples"""

import json

from posepipe import cli
from posepipe.config import PrepareConfig


def main() -> None:
    settings = cli.parse(PrepareConfig)
    with cli.user_errors():
        from posepipe import cluster, preparing

        if settings.dry_run:
            print(json.dumps(preparing.inventory(settings), indent=1))
            return
        cluster.connect()
        print(preparing.describe(preparing.prepare(settings), settings.samples_uri))


if __name__ == "__main__":
    main()
